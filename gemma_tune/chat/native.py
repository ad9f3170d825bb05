"""Parses calls as FunctionGemma and Gemma 4 write them: `call:name{key:value,…}` between special tokens."""

from __future__ import annotations

import re
from typing import Any

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "None": None}
_KEY = re.compile(r"[^:{}\[\],<]+")
_WORD = re.compile(r"[A-Za-z]+")
_BLANK = re.compile(r"\s*")


class NoCall(ValueError):
    """The text is not a complete call."""


class Reader:
    """Parses one call.

    Args:
        text: A text that contains a call.
        place: Position to begin at.
        quote: The token that encloses strings.
    """

    def __init__(self, text: str, place: int, quote: str) -> None:
        self._text, self.place, self._quote = text, place, quote

    def call(self, end: str) -> tuple[str, dict[str, Any]]:
        """Name and arguments of a call that ends with the token `end`; sets `place` behind it.

        Raises:
            NoCall: There is none, it is cut off, or it contains an invalid value.
        """
        self._take("call:")
        name = self._text[self.place : self._text.find("{", self.place)].strip()
        if not name or any(c.isspace() or c in "<>" for c in name):
            raise NoCall
        self.place = self._text.index("{", self.place)
        try:
            arguments = self._mapping()
        except RecursionError as error:
            raise NoCall from error
        self._take(end)
        return name, arguments

    def _skip(self) -> None:
        blank = _BLANK.match(self._text, self.place)
        assert blank is not None  # it also matches the empty string
        self.place = blank.end()

    def _next_is(self, token: str) -> bool:
        """Consumes a token if it comes next, and says whether it did."""
        self._skip()
        if not self._text.startswith(token, self.place):
            return False
        self.place += len(token)
        return True

    def _take(self, token: str) -> None:
        if not self._next_is(token):
            raise NoCall

    def _pattern(self, pattern: re.Pattern[str]) -> str:
        self._skip()
        found = pattern.match(self._text, self.place)
        if found is None:
            raise NoCall
        self.place = found.end()
        return found[0]

    def _string(self) -> str:
        end = self._text.find(self._quote, self.place)
        if end < 0:
            raise NoCall
        text = self._text[self.place : end]
        self.place = end + len(self._quote)
        return text

    def _mapping(self) -> dict[str, Any]:
        self._take("{")
        found: dict[str, Any] = {}
        if self._next_is("}"):
            return found
        while True:
            key = self._string() if self._next_is(self._quote) else self._pattern(_KEY).rstrip()
            self._take(":")
            found[key] = self._value()
            if self._next_is("}"):
                return found
            self._take(",")

    def _list(self) -> list[Any]:
        self._take("[")
        found: list[Any] = []
        if self._next_is("]"):
            return found
        while True:
            found.append(self._value())
            if self._next_is("]"):
                return found
            self._take(",")

    def _value(self) -> Any:
        if self._next_is(self._quote):
            return self._string()
        self._skip()
        first = self._text[self.place : self.place + 1]
        if first == "{":
            return self._mapping()
        if first == "[":
            return self._list()
        if first == "-" or first.isdigit():
            number = self._pattern(_NUMBER)
            return float(number) if any(c in number for c in ".eE") else int(number)
        word = self._pattern(_WORD)
        if word not in _WORDS:
            raise NoCall
        return _WORDS[word]
