"""Answers every mistake in a configuration at once, before torch is imported.

`commandline` checks the words typed, `userfiles` the user's own YAML, `schema` keys and values,
`crossfield` values against each other, `trainer_options` the names below `train.extra`.
"""

from gemma_tune.strict.commandline import for_hydra, in_quotes, literal
from gemma_tune.strict.commandline import problems_of as problems_of_words
from gemma_tune.strict.crossfield import cross_problems
from gemma_tune.strict.schema import problems_of as problems_of_tree
from gemma_tune.strict.userfiles import problems_of_files

__all__ = [
    "cross_problems", "for_hydra", "in_quotes", "literal", "problems_of_files", "problems_of_tree", "problems_of_words",
]  # fmt: skip
