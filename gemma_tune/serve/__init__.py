"""Serving a model as an OpenAI-compatible API: which weights by which engine, where, and how clients ask."""
