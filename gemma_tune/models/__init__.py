"""Checkpoints: where they come from, how they are held in memory, what is trained of them."""
