"""The fields of a row as formats read them: each is used, listed as not used, or refused with the way out."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_tune.data.json_decoder import refuse_two_values
from gemma_tune.data.known_fields import refusal_of
from gemma_tune.data.records import BadRow, Record
from gemma_tune.errors import near

# What tools write into a cell for a missing value: pandas, NumPy, Python, JSON, R, SQL
_MISSING = frozenset({"nan", "NaN", "None", "null", "NULL", "NA", "N/A", "<NA>", "NaT"})
# How alike names of fields are that are proposed: `Sender` for `sender`, `texts` for `text`, and not `ticket`
_NEAR = 0.75


class RowFields:
    """The fields of one row, which remembers what was read of them.

    A name is first looked up as it is, then as a path into nested objects and lists (`ticket.question.text`,
    `answers.text.0`). A null and the number NaN count as no value.

    Args:
        where: File and line.
        row: The fields.
        ignored: Names that are neither read nor listed (`data.ignore_fields`).
        scopes: Fields in which the row's conversation stands: what is known by name is also looked for there.
        media_folder: Where relative paths of media are looked up; None: the current folder.
    """

    def __init__(
        self,
        where: str,
        row: Mapping[str, Any],
        ignored: Collection[str] = (),
        scopes: Collection[str] = (),
        media_folder: Path | None = None,
    ) -> None:
        self.where, self.row, self.scopes = where, row, scopes
        self.media_folder, self.has_media = media_folder, False  # the second: whether a medium was read
        self._ignored = frozenset(ignored)
        self._used: set[tuple[str | int, ...]] = set()
        self._unused: dict[str, None] = {}
        self.ignored: dict[str, None] = {}  # those of the names to ignore that the row has
        self.missing: dict[str, None] = {}  # names of values that read `nan`, `None` or `null`

    def __iter__(self) -> Any:
        return iter(self.row)

    def has(self, name: str) -> bool:
        """Whether the row has a value of this name that isn't ignored; doesn't count as use."""
        if name not in self.row and "." not in name:
            return False
        path, value = self._find(name)
        return bool(path) and not self.is_ignored(name) and _has_value(value)

    def named(self, names: Sequence[str]) -> list[str]:
        """Those of some names that the row has a value of, its own before those within its scopes."""
        if not self.scopes and self.row.keys().isdisjoint(names):  # most rows, and this is asked often
            return []
        own = [name for name in names if name in self.row and self.has(name)]
        return own + [f"{scope}.{n}" for scope in self.scopes for n in names if self.has(f"{scope}.{n}")]

    @property
    def ignores(self) -> bool:
        """Whether any field is ignored."""
        return bool(self._ignored)

    def is_ignored(self, name: str) -> bool:
        """Whether the user has named this field, which the row has, in `data.ignore_fields`."""
        if name not in self._ignored:
            return False
        self.ignored[name] = None
        return True

    def is_used(self, name: str) -> bool:
        """Whether the value of this name was read."""
        return self._find(name)[0] in self._used

    def peek(self, name: str) -> Any:
        """The value of a field, without counting it as used."""
        return self._find(name)[1]

    def get(self, name: str) -> Any:
        """The value of a field, which counts as used; None where the row has none, or it is ignored.

        Raises:
            BadRow: It stands in a text of JSON that has two values under one name.
        """
        path, value = self._find(name)
        if not path or self.is_ignored(name):
            return None
        if len(path) > 1 and isinstance(self.row[str(path[0])], str):
            refuse_two_values(self.row[str(path[0])], self.where)
        self._used.add(path)
        if isinstance(value, float) and math.isnan(value):
            self.missing[name] = None
            return None
        return value

    def require(self, name: str, fix: str = "") -> Any:
        """The value of a field that must be there, and not be ignored.

        Raises:
            BadRow: It isn't there; the message lists the fields that exist, and ends with `fix`.
        """
        if self.is_ignored(name):
            raise BadRow(
                f"{self.where}: the field {name!r} is what this format reads, and data.ignore_fields has it: take it "
                "out of that list, or name another format or column."
            )
        if not self._find(name)[0]:
            raise self._lacking({name: name}, fix and f" {fix}")
        return self.get(name)

    def _lacking(self, names: Mapping[str, str], fix: str) -> BadRow:
        """The error of missing fields, by the keys that name them, or by themselves."""
        found = ", ".join(self.row) or "none"
        said = " and no field ".join(map(repr, names.values()))
        meant = "".join(
            f" Did you mean {best[0] if key == name else f'{key}={best[0]}'}?"
            for key, name in names.items()
            if (best := near(name, self.row, cutoff=_NEAR))
        )
        return BadRow(f"{self.where}: there is no field {said}; found: {found}.{meant}{fix}")

    def require_all(self, names: Mapping[str, str]) -> None:
        """Checks that the row has every field of some configuration keys.

        Args:
            names: The fields by the keys that name them.

        Raises:
            BadRow: Some aren't there; one message names them all, and the keys.
        """
        lacking = {key: name for key, name in names.items() if not self.is_ignored(name) and not self._find(name)[0]}
        if lacking:
            raise self._lacking(lacking, f" Set {', '.join(lacking)}.")

    def text(self, name: str, key: str = "") -> str:
        """A text that must be there and not blank; a number counts as its text.

        Args:
            name: The field.
            key: The configuration key that names the field, if any, for messages.

        Raises:
            BadRow: It is missing, blank, or no text.
        """
        value, said = self.require(name, f"Set {key}." if key else ""), f" ({key})" if key else ""
        if value is None and name in self.missing:
            raise BadRow(f"{self.where}: the field {name!r} is NaN, a missing value{said}.")
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise BadRow(f"{self.where}: the field {name!r} is {type(value).__name__}, not a text{said}.")
        if not value.strip():
            raise BadRow(f"{self.where}: the field {name!r} is empty{said}.")
        self.check_missing(name, value)
        return value

    def optional_text(self, name: str) -> str:
        """A text that may be missing; "" then, and where the cell only says so (`nan`, `None`), which is counted."""
        value = self.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return ""
        if self.check_missing(name, value):
            return ""
        return self.text(name)

    def check_missing(self, name: str, value: Any) -> bool:
        """Whether a text reads as tools write a missing value (`nan`, `None`, `null`); counts it."""
        found = isinstance(value, str) and value.strip() in _MISSING
        if found:
            self.missing[name] = None
        return found

    def not_used(self, name: str) -> None:
        """Lists a field of a message as not used, for example `messages.category`.

        Raises:
            BadRow: Its meaning is known and can't be honoured.
        """
        if not self.is_ignored(name):
            self._unused[name] = None

    def refuse(self, name: str, value: Any, conversation: bool = True) -> None:
        """Refuses a field whose meaning is known and can't be honoured; others pass.

        Args:
            name: The field, for example `images` or `messages.images`.
            value: Its value.
            conversation: Whether the row is a conversation, not running text.

        Raises:
            BadRow: It is such a field.
        """
        reason = None if self.is_ignored(name) else refusal_of(name, value, conversation)
        if reason:
            raise BadRow(f"{self.where}: the field {name!r} {reason}")

    def noted(self, record: Record, conversation: bool = True) -> Record:
        """The record with the names of the fields that it didn't use, of those that say only `nan` or `None`, and of
        those that are ignored.

        Raises:
            BadRow: As `left`.
        """
        unused = self.left(conversation)
        if not (unused or self.missing or self.ignored):
            return record
        return record.with_remarks(unused=unused, missing=tuple(self.missing), ignored=tuple(self.ignored))

    def left(self, conversation: bool = True) -> tuple[str, ...]:
        """The names of the fields that were not used, for the list of the file.

        Raises:
            BadRow: One of them has a meaning that is known and can't be honoured.
        """
        for name, value in self.row.items():
            self._leave((name,), value, conversation)
        return tuple(self._unused)

    def _leave(self, path: tuple[str | int, ...], value: Any, conversation: bool) -> None:
        name = ".".join(map(str, path))
        if path in self._used or self.is_ignored(name) or not _has_value(value):
            return
        if any(used[: len(path)] == path for used in self._used):
            value = structure_in(value)
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                self._leave((*path, key), part, conversation)
            return
        self.refuse(name, value, conversation)
        self._unused[name] = None

    def _find(self, name: str) -> tuple[tuple[str | int, ...], Any]:
        """The path to a value and the value; no path where there is none."""
        if name in self.row:
            return (name,), self.row[name]
        first, *rest = name.split(".")
        if not rest or first not in self.row:
            return (), None
        path: list[str | int] = [first]
        value: Any = self.row[first]
        for part in rest:
            value = structure_in(value)
            if isinstance(value, dict) and part in value:
                path.append(part)
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                path.append(int(part))
                value = value[int(part)]
            else:
                return (), None
        return tuple(path), value


def _has_value(value: Any) -> bool:
    return not is_empty(structure_in(value)) and not (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, an empty text, or a list or mapping of such; false and 0 say something."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None or value == ""


def structure_of(value: Any, where: str) -> Any:
    """As `structure_in`, for a value that is used as a list or mapping.

    Raises:
        BadRow: A mapping in it has two different values under one name.
    """
    refuse_two_values(value, where)
    return structure_in(value)


def structure_in(value: Any) -> Any:
    """The list or mapping that a text holds as JSON, or as Python prints it (pandas' CSV); else the value itself."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    return found if isinstance(found, list | dict) else value
