"""Evaluators, and what they share.

Each name of `EVALUATORS` (config/eval.py) is a file here with `prepare(inputs: Inputs) -> Evaluator`, which is called
as `(engine, limit) -> Outcome` (base.py). The other files are helpers.
"""
