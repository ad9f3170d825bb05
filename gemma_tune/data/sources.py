"""Where rows come from, and how a format walks over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gemma_tune.data.files import Row, read_file
from gemma_tune.data.records import BadRow, Record


class RowSource(Protocol):
    """Rows that are in no file of their own, as those of a data set on the Hub."""

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in their order."""
        ...


@dataclass(frozen=True)
class OpenRows:
    """Rows that are being read already, as the source of a format; to be walked over once."""

    given: Iterator[Row | BadRow]

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in their order."""
        return self.given


Source = Path | RowSource


def read_rows(source: Source) -> Iterator[Row | BadRow]:
    """Every row of a file or of a split, or what is wrong with it."""
    return read_file(source) if isinstance(source, Path) else source.rows()


def map_rows(source: Source, record: Callable[[str, dict[str, Any]], Record]) -> Iterator[Record | BadRow]:
    """A record for each row, made by `record(where, row)`; what is wrong with a row is given in its place."""
    for row in read_rows(source):
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            made = record(*row)
            made.row.update(row[1])
            yield made
        except BadRow as error:
            yield error


def field(row: dict[str, Any], name: str, where: str, fix: str = "") -> Any:
    """A field that must be there.

    Raises:
        BadRow: It isn't; the message lists the fields that are, and ends with `fix`.
    """
    if name not in row:
        raise BadRow(f"{where}: there is no field {name!r}; found: {', '.join(row) or 'none'}.{fix and ' ' + fix}")
    return row[name]


def text_field(row: dict[str, Any], name: str, where: str, key: str = "") -> str:
    """A field that must be a text with something in it; `key` of the configuration maps it, if there is one."""
    value, said = field(row, name, where, f"Set {key}." if key else ""), f" ({key})" if key else ""
    if not isinstance(value, str):
        raise BadRow(f"{where}: the field {name!r} is {type(value).__name__}, not a text{said}.")
    if not value.strip():
        raise BadRow(f"{where}: the field {name!r} is empty{said}.")
    return value
