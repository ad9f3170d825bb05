"""`data=messages`: conversations in the OpenAI format, with tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.records import BadRow, Record, checked_messages, checked_tools
from gemma_tune.data.sources import Source, field, map_rows

_ELSE = (
    "For a question and an answer in two fields use data=columns; for conversations in another field set "
    "data.messages_column; data=auto recognises other known formats."
)


def fields(data: DataConfig) -> tuple[str, ...]:
    """Required fields."""
    return (data.messages_column,)


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one record per row."""

    def record(where: str, row: dict[str, Any]) -> Record:
        given = field(row, data.messages_column, where, _ELSE)
        messages = checked_messages(given, where, answered=not data.prompts_only)
        return Record(where, messages=messages, tools=checked_tools(row.get(data.tools_column), where))

    return map_rows(source, record)
