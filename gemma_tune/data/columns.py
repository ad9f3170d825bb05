"""`data=columns`: one prompt and one answer a row, in fields of any name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.sources import Source, each, text_field


def fields(data: DataConfig) -> tuple[str, ...]:
    """What a row must have; nothing as long as the columns aren't named."""
    return (data.prompt_column, data.completion_column) if data.prompt_column and data.completion_column else ()


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one conversation of one turn a row."""
    assert data.prompt_column and data.completion_column  # `strict` has asked for both
    keys = {"system": data.system_column, "user": data.prompt_column, "assistant": data.completion_column}
    names = {"system": "data.system_column", "user": "data.prompt_column", "assistant": "data.completion_column"}

    def record(where: str, row: dict[str, Any]) -> Record:
        said = [(role, text_field(row, key, where, names[role])) for role, key in keys.items() if key]
        return Record(where, messages=[{"role": role, "content": text} for role, text in said])

    return each(source, record)
