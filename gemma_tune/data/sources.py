"""Sources of rows, and the helpers with which formats read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gemma_tune.data.files import Row, read_file
from gemma_tune.data.records import BadRow, Record


class RowSource(Protocol):
    """Rows that don't come from a file of their own, such as a split of a Hub data set."""

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in their order."""
        ...


@dataclass(frozen=True)
class OpenRows:
    """Rows of a source that is open already; they can be iterated once."""

    given: Iterator[Row | BadRow]

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in their order."""
        return self.given


Source = Path | RowSource


def read_rows(source: Source) -> Iterator[Row | BadRow]:
    """The rows of a file or of a split, and a BadRow for each that can't be read."""
    return read_file(source) if isinstance(source, Path) else source.rows()


def map_rows(source: Source, record: Callable[[str, dict[str, Any]], Record]) -> Iterator[Record | BadRow]:
    """Yields `record(where, row)` for each row, and a BadRow for each row that can't be used."""
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
    """A required field of a row.

    Raises:
        BadRow: It is missing; the message lists the fields that exist, and ends with `fix`.
    """
    if name not in row:
        raise BadRow(f"{where}: there is no field {name!r}; found: {', '.join(row) or 'none'}.{fix and ' ' + fix}")
    return row[name]


def text_field(row: dict[str, Any], name: str, where: str, key: str = "") -> str:
    """A required field that holds a non-blank text; `key` is the configuration key that names the field, if any."""
    value, said = field(row, name, where, f"Set {key}." if key else ""), f" ({key})" if key else ""
    if not isinstance(value, str):
        raise BadRow(f"{where}: the field {name!r} is {type(value).__name__}, not a text{said}.")
    if not value.strip():
        raise BadRow(f"{where}: the field {name!r} is empty{said}.")
    return value
