"""Reads JSON values, and notices two values under one name, of which Python's own decoder keeps the last in silence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gemma_tune.data.records import BadRow


@dataclass(frozen=True)
class Twice:
    """What is read in place of a value that has an object with two values under one name."""

    name: str

    def refused(self, where: str) -> BadRow:
        """What is wrong with it."""
        return BadRow(
            f"{where}: an object has two values under the name {self.name!r}, and only one can be read: keep one."
        )


class Decoder:
    """Reads JSON, where Python's own keeps the last of two values under one name in silence."""

    def __init__(self) -> None:
        self._json = json.JSONDecoder(object_pairs_hook=self._object)
        self._twice: Twice | None = None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._twice = next((Twice(name) for name, value in pairs if value != found[name]), self._twice)
        return found

    def line(self, text: str) -> Any:
        """The value of a text.

        Raises:
            ValueError: It isn't JSON.
            RecursionError: It is too deep.
        """
        self._twice = None
        value = self._json.decode(text)
        return self._twice or value

    def value(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at a place, and where it ends.

        Raises:
            ValueError: It isn't JSON.
            RecursionError: It is too deep.
        """
        self._twice = None
        value, end = self._json.raw_decode(text, at)
        return self._twice or value, end
