"""The marks around what the model generates, while a template is rendered."""

from __future__ import annotations

from typing import Any

from gemma_tune.chat.forms import Unrenderable

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None
Span = tuple[int, int]

# Unicode noncharacters, which texts don't contain: they mark begin and end of a part while the template is rendered.
BEGIN, END = "\ufdd0", "\ufdd1"


def split_marks(rendered: str) -> tuple[str, list[Span]]:
    """A rendered text without its marks, and where they stood: begin and end in characters, in order.

    Raises:
        Unrenderable: The marks don't go together.
    """
    pieces: list[str] = []
    spans: list[Span] = []
    place = 0
    first, *parts = rendered.split(BEGIN)
    for number, part in enumerate([first, *parts]):
        said, *rest = part.split(END)
        if len(rest) != (number > 0):
            raise Unrenderable("a text holds U+FDD0 or U+FDD1, which Unicode keeps out of texts; take it out.")
        if rest:
            spans.append((place, place + len(said)))
        pieces += [said, *rest]
        place += len(said) + sum(map(len, rest))
    return "".join(pieces), spans
