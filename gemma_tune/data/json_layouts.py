"""Reads JSON in the layouts that people have: one object a line, an array, objects over several lines, one object that
holds the rows under a field, and tables of columns as pandas and lists of values make them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from gemma_tune.data.file_rows import FileOptions, Row, text_lines
from gemma_tune.data.json_decoder import Decoder, Twice
from gemma_tune.data.json_tables import rows_of_object
from gemma_tune.data.records import BadRow

_SPACE = re.compile(r"[ \t\r\n]*")
_UNREADABLE = (ValueError, RecursionError)
# Characters of an object that goes over several lines of a JSONL file; of a text that is long enough to be looked at,
# and values in a line of that length (about 100 bytes each in Python)
_JOINED, _LOOKED_AT, _VALUES = 64 << 20, 4 << 20, 1_000_000
# Lines that are joined at once; so many, with fewer characters each than these, are no rows
_AT_ONCE, _MANY_LINES, _SHORT = 4096, 4_000_000, 8
Line = tuple[int, str | BadRow]


def read_jsonl(path: Path, file: IO[bytes], options: FileOptions) -> Iterator[Row | BadRow]:
    """Yields the object of each line; objects over several lines, and a file that is one object, are read, too.

    Raises:
        BadRow: The rest of the file can't be read.
    """
    return _read(path, text_lines(path, file, options), options, may_be_array=False)


def read_json(path: Path, file: IO[bytes], options: FileOptions) -> Iterator[Row | BadRow]:
    """The same for a .json file, which may also be one array of objects.

    Raises:
        BadRow: The rest of the file can't be read.
    """
    return _read(path, text_lines(path, file, options, longest=None), options, may_be_array=True)


def _checked(row: Any, where: str) -> Row | BadRow:
    if isinstance(row, dict):
        return where, row
    if isinstance(row, Twice):
        return row.refused(where)
    return BadRow(f"{where}: this line is {type(row).__name__}, not a JSON object.")


def _is_filled(line: Line) -> bool:
    return isinstance(line[1], BadRow) or bool(_SPACE.sub("", line[1], count=1))


def _read(path: Path, lines: Iterator[Line], options: FileOptions, may_be_array: bool) -> Iterator[Row | BadRow]:
    first = next(filter(_is_filled, lines), None)
    if first is None:
        return
    number, text = first
    if isinstance(text, BadRow):
        yield from _by_line(path, chain([first], lines))
    elif options.layouts and options.field is not None:
        most = None if may_be_array else _JOINED
        yield from _below_field(_Values(path, _joined(path, text, lines, most), number), options)
    elif may_be_array and text.lstrip()[:1] == "[":
        yield from _array(_Values(path, _joined(path, text, lines, None), number))
    else:
        yield from _objects(path, number, text, lines, options, None if may_be_array else _JOINED)


def _objects(
    path: Path, number: int, text: str, lines: Iterator[Line], options: FileOptions, most: int | None
) -> Iterator[Row | BadRow]:
    """The rows of a file that begins with an object: on one line, or over several."""
    where = f"{path}:{number}"
    if most is not None:
        _refuse_many_values(text, where, _VALUES)
    begin = _Values(path, text, number)
    begin.mark()
    try:
        row = begin.value()
        second = next(filter(_is_filled, lines), None) if not begin.mark() else None
    except _UNREADABLE as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else 0
        if begin.text[begin.at] != "{" or at < len(text.rstrip()):  # not for want of the lines that follow
            yield from _by_line(path, chain([(number, text)], lines))
        else:
            yield from _over_lines(_Values(path, _joined(path, text, lines, most), number), options)
        return
    if begin.mark():  # something follows on the same line
        yield from _by_line(path, chain([(number, text)], lines))
    elif second is None and isinstance(row, dict):
        yield from _only_object(path, where, row, options)
    else:
        yield _checked(row, where)
        yield from _by_line(path, chain([second] if second else [], lines))


def _by_line(path: Path, lines: Iterable[Line], hint: str = "") -> Iterator[Row | BadRow]:
    decoder = Decoder()
    for number, text in lines:
        where = f"{path}:{number}"
        if isinstance(text, BadRow):
            yield text
            continue
        line = text.strip()
        try:
            _refuse_many_values(line, where, _VALUES)
            if line:
                yield _checked(decoder.line(line), where)
        except BadRow as error:
            yield error
        except _UNREADABLE as error:
            if line.startswith("[") and number == 1:
                hint = " Name a file that is one JSON array .json."
            yield BadRow(f"{where}: this line is not JSON ({error}).{hint}")
        hint = ""


def _joined(path: Path, text: str, lines: Iterable[Line], most: int | None) -> str:
    """The text of a file, from a line on, of at most so many characters.

    Raises:
        BadRow: A line can't be decoded, or there are more.
    """
    parts, some, size = [text], list[str](), 0
    for count, (number, line) in enumerate(lines):
        if isinstance(line, BadRow):
            raise line
        some.append(line)
        size += len(line)
        if most is not None and size > most:
            raise BadRow(
                f"{path}:{number}: an object over several lines has more than {most >> 20} MiB here; write one object "
                "a line, or name a file that is one value .json."
            )
        if count >= _MANY_LINES and size < count * _SHORT:
            raise BadRow(f"{path}:{number}: {count:,} lines with fewer than {_SHORT} characters each are no rows.")
        if len(some) == _AT_ONCE:  # short lines take ten times their length
            parts.append("".join(some))
            some.clear()
    return "".join([*parts, *some])


def _refuse_many_values(text: str, where: str, most: int) -> None:
    """Raises BadRow for a long text with more values than any row has; Python would take gigabytes for them."""
    if len(text) > _LOOKED_AT and sum(text.count(mark) for mark in ",[{") > most:
        raise BadRow(f"{where}: this holds more than {most:,} values, which no row has.")


class _Values:
    """Reads JSON values from a text, one after the other.

    Attributes:
        path: The file.
        text: Its text, from the line `line` on.
        at: The place reached.
    """

    def __init__(self, path: Path, text: str, line: int) -> None:
        self.path, self.text, self.at = path, text, 0
        self._decoder = Decoder()
        self._line, self._counted = line, 0
        self._number, self._last = 0, 0  # of the row, and the line that the last one began on
        _refuse_many_values(text, f"{path}:{line}", _VALUES + len(text) // 4)

    def mark(self) -> str:
        """Passes over white space; the character there, or nothing at the end."""
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.text[self.at : self.at + 1]

    def place(self) -> str:
        """File and line of the place reached."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return f"{self.path}:{self._line}"

    def row_place(self) -> str:
        """The same for the row that begins there, with its number where an earlier one begins on the same line."""
        where = self.place()
        self._number += 1
        where, self._last = f"{where}, row {self._number}" if self._line == self._last else where, self._line
        return where

    def value(self) -> Any:
        """The value that begins at the place reached.

        Raises:
            ValueError: It isn't JSON.
            RecursionError: It is too deep.
        """
        value, self.at = self._decoder.value(self.text, self.at)
        return value


def _array(values: _Values) -> Iterator[Row | BadRow]:
    values.mark()
    values.at += 1
    expected = False  # after a comma a value must come
    while True:
        if values.mark() == "]" and not expected:
            values.at += 1
            if values.mark():
                raise BadRow(
                    f"{values.place()}: something follows the array; a .json file holds one (or an object a line)."
                )
            return
        where = values.row_place()
        try:
            row = values.value()
        except _UNREADABLE as error:
            raise BadRow(f"{values.place()}: from here on the array is not JSON ({error}).") from error
        yield _checked(row, where)
        expected = values.mark() == ","
        if not expected and values.mark() != "]":
            raise BadRow(f"{values.place()}: a comma or the array's end is missing here.")
        values.at += expected


def _over_lines(values: _Values, options: FileOptions) -> Iterator[Row | BadRow]:
    """The rows of a file whose first object goes over several lines; read line by line where it doesn't end."""
    values.mark()
    where, start = values.row_place(), values.at
    try:
        row = values.value()
    except _UNREADABLE as error:
        line = int(values.place().rpartition(":")[2])
        at = line + error.lineno - 1 if isinstance(error, json.JSONDecodeError) else line
        lines = enumerate(values.text.split("\n"), start=line - values.text.count("\n", 0, start))
        hint = f" As an object over several lines it ends at line {at}, where no more of it can be read."
        yield from _by_line(values.path, lines, hint)
        return
    if not values.mark() and isinstance(row, dict):
        yield from _only_object(values.path, where, row, options)
        return
    yield _checked(row, where)
    while values.mark():
        where = values.row_place()
        try:
            row = values.value()
        except _UNREADABLE as error:
            raise BadRow(
                f"{where}: from here on this is not JSON ({error}); after an object over several lines only more "
                "objects follow, without commas between them: or make it one array in a .json file."
            ) from error
        yield _checked(row, where)


def _only_object(path: Path, where: str, row: dict[str, Any], options: FileOptions) -> Iterator[Row | BadRow]:
    """The rows of a file that is one object: the object, or those that it holds."""
    rows = rows_of_object(row, options, where) if options.layouts else None
    if rows is None:
        yield where, row
        return
    for number, found in enumerate(rows, start=1):
        yield _checked(found, f"{path}:row {number}")


def _below_field(values: _Values, options: FileOptions) -> Iterator[Row | BadRow]:
    """The rows under `data.field` of the one object of a file."""
    values.mark()
    where = values.place()
    try:
        row = values.value()
    except _UNREADABLE as error:
        raise BadRow(f"{where}: data.field={options.field}: this file is not one JSON object ({error}).") from error
    if isinstance(row, Twice):
        raise row.refused(where)
    if values.mark() or not isinstance(row, dict):
        raise BadRow(f"{where}: data.field={options.field}: this file is not one JSON object; leave the key out.")
    yield from _only_object(values.path, where, row, options)
