"""Evaluators, and what they share.

Each name of `EVALUATORS` (config/eval.py) is a file here with `prepare(inputs: Inputs) -> Evaluator`, which is called
as `(engine, limit) -> Outcome` (base.py). The other files are helpers. A new evaluator also has its settings in
config/eval.py, their checks in validation/evaluators.py, what its metrics depend on in `conditions_of` (evaluation.py;
`recipe=compare` relies on it), in `_SHARES` there what is shown as a percentage, and perhaps a YAML in configs/eval/.
"""
