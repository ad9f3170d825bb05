"""`data=text`: running text, one document a row."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_tune.config import DataConfig
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.sources import Source, map_rows, text_field


def fields(data: DataConfig) -> tuple[str, ...]:
    """Required fields."""
    return (data.text_column,)


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one record per row."""
    return map_rows(
        source, lambda where, row: Record(where, text=text_field(row, data.text_column, where, "data.text_column"))
    )
