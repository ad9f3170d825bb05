"""How a field of the schema is declared: its default, its meaning and its limits, in one place."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field with its documentation and limits.

    Args:
        default: The default; a list or a dict is copied for each instance.
        help: One or two sentences, with the unit; they become `docs/configuration.md`.
        choices: All values that are allowed (besides null where the type allows null).
        at_least: The lowest value allowed.
        above: The value must be greater than this.
        at_most: The highest value allowed.
    """
    metadata = {"help": help, "choices": choices, "at_least": at_least, "above": above, "at_most": at_most}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
