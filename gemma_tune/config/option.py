"""How a field of the schema is declared: its default, its meaning and its limits, in one place."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

# What a key names on disk:
PathKind = Literal[
    "file",  # one file
    "folder",  # one folder
    "rows",  # a file, a folder of files, or a glob
    "model",  # a folder of a model, an adapter or a run, a GGUF file, or a name on the Hub
    "dataset",  # a folder, or a name on the Hub
    "function",  # `path/to/file.py:function`, or a short name of ours
    "template",  # a file, or a short name of ours
    "cache",  # a folder that is read where it is there, and written where it isn't
    "checkpoint",  # a folder within the run folder, or a word for one
    "output",  # a file or a folder that is written
]


# Highest values of what is counted; nothing real comes near them.
STEPS, ROWS, TOKENS, BATCH = 10**9, 10**12, 2**24, 2**16
SEED = 2**32 - 1  # NumPy's


def plain_number(value: float) -> str:
    """A number as people write it: 1000000 and 0.03, and 1e+300."""
    return str(int(value)) if abs(value) < 1e16 and value == int(value) else f"{value:g}"


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    longest: int | None = None,
    path: PathKind | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field with its documentation and limits.

    Args:
        default: The default; a list or a dict is copied for each instance.
        help: One or two sentences, with the unit; they become `docs/configuration.md`.
        choices: All values that are allowed (besides null where the type allows null).
        at_least: The lowest value allowed; of a list or a mapping, that of each of its numbers.
        above: The value must be greater than this.
        at_most: The highest value allowed. Every number has one: nothing is computed from 1e300 steps.
        longest: The most characters of a text.
        path: What the value names on disk, or each value of a list or a mapping; see `path_keys`.
        secret: The value is never shown or stored.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "longest": longest,
        "path": path,
        "secret": secret,
    }
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
