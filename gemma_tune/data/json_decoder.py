"""Reads JSON values, and notices two values under one name, of which Python's own decoder keeps the last in silence."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import Any

from gemma_tune.data.records import BadRow
from gemma_tune.same_json import name_of_two_values


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
        if (name := name_of_two_values(pairs)) is not None:
            self._twice = Twice(name)
        return dict(pairs)

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


def refuse_two_values(value: Any, where: str) -> None:
    """Refuses a text that is read as the list or mapping that it holds, where one of its mappings is ambiguous.

    Args:
        value: The text, of JSON or as Python prints it, or a list with such texts; anything else has been looked at.
        where: File and line.

    Raises:
        BadRow: A mapping in it has two different values under one name.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = Decoder().line(value)
        except (ValueError, RecursionError):
            value = _printed(value)
    if isinstance(value, Twice):
        raise value.refused(where)
    if isinstance(value, list):
        for entry in value:
            if isinstance(entry, str):
                refuse_two_values(entry, where)


def _printed(text: str) -> Twice | None:
    """The first name with two values in what Python has printed."""
    try:
        nodes = [node for node in ast.walk(ast.parse(text.strip(), mode="eval")) if isinstance(node, ast.Dict)]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    for node in nodes:
        found: dict[str, str] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and found.setdefault(str(key.value), ast.dump(value)) != ast.dump(value):
                return Twice(str(key.value))
    return None
