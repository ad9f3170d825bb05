"""Sources of rows, and the helpers with which formats read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gemma_tune.config import DataConfig
from gemma_tune.data.file_rows import Row
from gemma_tune.data.files import read_file
from gemma_tune.data.media_parts import without_bytes
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields
from gemma_tune.run.paths import resolve


class RowSource(Protocol):
    """Rows that don't come from a file of their own, such as a split of a Hub data set."""

    @property
    def folder(self) -> Path | None:
        """Where relative paths in the rows are looked up, if they are of files on this machine."""
        ...

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in their order."""
        ...


@dataclass(frozen=True)
class OpenRows:
    """Rows of a source that is open already; they can be iterated once.

    Attributes:
        given: The rows.
        folder: Where their file lies, if they are of one.
    """

    given: Iterator[Row | BadRow]
    folder: Path | None = None

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in their order."""
        return self.given


Source = Path | RowSource


def folder_of(source: Source) -> Path | None:
    """The folder of a source's file; None of one that has none, such as a data set of the Hub."""
    return source.parent if isinstance(source, Path) else source.folder


def read_rows(source: Source) -> Iterator[Row | BadRow]:
    """The rows of a file or of a split, and a BadRow for each that can't be read."""
    return read_file(source) if isinstance(source, Path) else source.rows()


def _scopes(data: DataConfig) -> list[str]:
    """The fields in which the configured columns stand, the nearest first: `body` of `body.messages`."""
    columns = (data.messages_column, data.prompt_column, data.completion_column)
    parts = [column.split(".") for column in columns if column]
    return list(dict.fromkeys(".".join(path[:n]) for path in parts for n in range(len(path) - 1, 0, -1)))


def media_folder(source: Source, data: DataConfig) -> Path | None:
    """Where relative paths of media in a source's rows are looked up."""
    return resolve(data.media_folder) if data.media_folder else folder_of(source)


def row_fields(source: Source, data: DataConfig) -> Iterator[RowFields | BadRow]:
    """The fields of each row, and a BadRow for each row that can't be read.

    Args:
        source: A file or a split.
        data: Names the columns, and the fields that are ignored.
    """
    scopes, folder = _scopes(data), media_folder(source, data)
    for row in read_rows(source):
        yield row if isinstance(row, BadRow) else RowFields(*row, data.ignore_fields, scopes, folder)


def map_rows(
    source: Source, record: Callable[[RowFields], Record], data: DataConfig, conversation: bool = True
) -> Iterator[Record | BadRow]:
    """Yields `record(fields)` for each row, and a BadRow for each row that can't be used.

    Args:
        source: A file or a split.
        record: Makes the record of a row; the fields that it doesn't read are listed as not used, or refused.
        data: Names the columns, and the fields that are ignored.
        conversation: Whether rows are conversations, not running text.
    """
    for fields in row_fields(source, data):
        if isinstance(fields, BadRow):
            yield fields
            continue
        try:
            made = record(fields)
            made.row.update(without_bytes(fields.row) if fields.has_media else fields.row)
            yield fields.noted(made, conversation)
        except BadRow as error:
            yield error
        except RecursionError:
            yield BadRow(f"{fields.where}: the row is nested too deeply.")
