"""`data=messages`: conversations in the OpenAI form, with tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gemma_tune.config import DataConfig
from gemma_tune.data.jsonl import read_jsonl
from gemma_tune.data.records import BadRow, Record, checked_messages, checked_tools


def read(path: Path, data: DataConfig) -> Iterator[Record]:
    """Yields one record a line."""
    for where, row in read_jsonl(path):
        if data.messages_column not in row:
            raise BadRow(
                f"{where}: there is no field {data.messages_column!r}; found: {', '.join(row) or 'none'}. For a "
                "question and an answer in two fields use data=columns; for conversations in another field set "
                "data.messages_column."
            )
        messages = checked_messages(row[data.messages_column], where)
        yield Record(where, messages=messages, tools=checked_tools(row.get(data.tools_column), where))
