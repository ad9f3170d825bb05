"""Answers every mistake in a configuration at once, before torch is imported.

`commandline` checks the words typed, `userfiles` the user's own YAML, `schema` keys and values,
`crossfield` values against each other, `own_code` the user's own Python, `trainer_options` the names below
`train.extra`.
"""

from gemma_tune.validation.commandline import (
    for_hydra,
    in_quotes,
    literal,
    problems_of_words,
    swept,
    too_many_references,
)
from gemma_tune.validation.crossfield import cross_problems
from gemma_tune.validation.own_code import problems_of_jobs
from gemma_tune.validation.schema import problems_of_tree
from gemma_tune.validation.userfiles import EXAMPLE, problems_of_files, problems_of_recipe

__all__ = [
    "EXAMPLE", "cross_problems", "for_hydra", "in_quotes", "literal", "problems_of_files", "problems_of_jobs",
    "problems_of_recipe", "problems_of_tree", "problems_of_words", "swept", "too_many_references",
]  # fmt: skip
