"""`data=columns`: one prompt and one answer a line, in fields of any name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gemma_tune.config import DataConfig
from gemma_tune.data.jsonl import read_jsonl, text_field
from gemma_tune.data.records import Record


def read(path: Path, data: DataConfig) -> Iterator[Record]:
    """Yields one conversation of one turn a line."""
    assert data.prompt_column and data.completion_column  # `strict` has asked for both
    for where, row in read_jsonl(path):
        messages = []
        if data.system_column:
            messages.append(("system", text_field(row, data.system_column, where, "data.system_column")))
        messages.append(("user", text_field(row, data.prompt_column, where, "data.prompt_column")))
        messages.append(("assistant", text_field(row, data.completion_column, where, "data.completion_column")))
        yield Record(where, messages=[{"role": role, "content": text} for role, text in messages])
