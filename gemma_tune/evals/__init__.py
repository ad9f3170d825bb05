"""Evaluators: one file each, `(model, tokenizer, …) -> figures`."""
