"""A reward by which every second row gives its completions no advantage, so that a process can be without any."""

from __future__ import annotations

from typing import Any


def half(completions: list[Any], records: list[Any]) -> list[float]:
    """1 for all completions of an even line, and of an odd one a value that depends on the completion."""
    lines = [int(record.where.rsplit(":", 1)[1]) for record in records]
    return [sum(map(ord, c)) % 7 / 7 if line % 2 else 1.0 for c, line in zip(completions, lines, strict=True)]
