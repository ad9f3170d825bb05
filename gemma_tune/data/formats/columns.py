"""`data=columns`: one prompt and one answer per row, in fields of any name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.formats.prompt_completion import as_messages
from gemma_tune.data.records import BadRow, Record, checked_messages
from gemma_tune.data.sources import Source, map_rows, text_field


def fields(data: DataConfig) -> tuple[str, ...]:
    """Required fields; none as long as the columns aren't named."""
    if data.prompts_only and data.prompt_column and not data.completion_column:
        return (data.prompt_column,)
    return (data.prompt_column, data.completion_column) if data.prompt_column and data.completion_column else ()


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one conversation per row: a prompt, or messages, followed by the answer."""
    assert data.prompt_column  # `validation` requires it
    keys = {"system": data.system_column, "user": data.prompt_column, "assistant": data.completion_column}
    names = {"system": "data.system_column", "user": "data.prompt_column", "assistant": "data.completion_column"}

    def record(where: str, row: dict[str, Any]) -> Record:
        messages: list[dict[str, Any]] = []
        for role, key in keys.items():
            if key and role == "user" and _is_list(row.get(key)):
                asked = as_messages(row[key], role, key, where)
                messages += [{**m, "weight": 0} if m.get("role") == "assistant" else m for m in asked]
            elif key and (key in row or role != "assistant" or not data.prompts_only):
                messages.append({"role": role, "content": text_field(row, key, where, names[role])})
        return Record(where, messages=checked_messages(messages, where, answered=not data.prompts_only))

    return map_rows(source, record)


def _is_list(value: Any) -> bool:
    """Whether a prompt is a list of messages, or such a list as text in a table's cell."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))
