"""`data=messages`: conversations in the OpenAI form, with tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gemma_tune.config import DataConfig
from gemma_tune.data.jsonl import field, read_jsonl
from gemma_tune.data.records import Record, checked_messages, checked_tools


def read(path: Path, data: DataConfig) -> Iterator[Record]:
    """Yields one record a line."""
    for where, row in read_jsonl(path):
        messages = checked_messages(field(row, data.messages_column, where, "data.messages_column"), where)
        yield Record(where, messages=messages, tools=checked_tools(row.get(data.tools_column), where))
