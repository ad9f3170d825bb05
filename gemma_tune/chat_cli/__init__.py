"""Talking to a model: answers aloud, conversations at the terminal, and files of prompts in batches."""
