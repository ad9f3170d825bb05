"""Training: the trainer's arguments, TRL's trainer with what Gemma needs, and callbacks."""
