"""`data=prompt_completion`: TRL's `prompt` and `completion`, as texts or as lists of messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.records import BadRow, Record, checked_messages, checked_tools
from gemma_tune.data.sources import Source, field, map_rows


def fields(data: DataConfig) -> tuple[str, ...]:
    """Required fields."""
    return ("prompt",) if data.prompts_only else ("prompt", "completion")


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one conversation per row; answers in the prompt are not trained on, as in TRL.

    A text is one turn: the user's or the assistant's.
    """

    def record(where: str, row: dict[str, Any]) -> Record:
        asked = as_messages(field(row, "prompt", where), "user", "prompt", where)
        asked = [{**m, "weight": 0} if m.get("role") == "assistant" else m for m in asked]
        answered = []
        if "completion" in row or not data.prompts_only:
            answered = as_messages(field(row, "completion", where), "assistant", "completion", where)
        messages = checked_messages([*asked, *answered], where, answered=not data.prompts_only)
        return Record(where, messages=messages, tools=checked_tools(row.get("tools"), where))

    return map_rows(source, record)


def as_messages(value: Any, role: str, name: str, where: str) -> list[dict[str, Any]]:
    """A field as messages: a text becomes one message of `role`, and a list of messages stays.

    Raises:
        BadRow: It is neither, or empty; the message calls it `name`.
    """
    if isinstance(value, str):
        value = _list_in_a_cell(value)
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"{where}: the field {name!r} is empty.")
        return [{"role": role, "content": value}]
    if isinstance(value, list) and value and all(isinstance(m, dict) for m in value):
        return value
    raise BadRow(f"{where}: the field {name!r} is neither a text nor a list of messages.")


def _list_in_a_cell(text: str) -> Any:
    """A list of messages that is stored as text in a table's cell; any other text, even JSON, is returned as it is."""
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else text
    except ValueError:
        return text
    is_messages = isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value)
    return value if is_messages else text
