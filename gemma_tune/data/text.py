"""`data=text`: running text, one document a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gemma_tune.config import DataConfig
from gemma_tune.data.jsonl import read_jsonl, text_field
from gemma_tune.data.records import Record


def read(path: Path, data: DataConfig) -> Iterator[Record]:
    """Yields one record a line."""
    for where, row in read_jsonl(path):
        yield Record(where, text=text_field(row, data.text_column, where, "data.text_column"))
