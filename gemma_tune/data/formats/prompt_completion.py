"""`data=prompt_completion`: TRL's `prompt` and `completion`, as texts or as lists of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.conversation import as_messages, conversation, row_tools
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields
from gemma_tune.data.sources import Source, map_rows


def fits(row: Mapping[str, Any], data: DataConfig) -> bool:
    """Whether a row is of this format."""
    return "prompt" in row and (data.prompts_only or "completion" in row)


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one conversation per row; answers in the prompt are not trained on, as in TRL.

    A text is one turn: the user's or the assistant's.
    """

    def record(fields: RowFields) -> Record:
        tools = row_tools(fields, data)
        asked = as_messages(fields.require("prompt"), "user", "prompt", fields)
        asked = [{**m, "weight": 0} if m.get("role") == "assistant" else m for m in asked]
        answered = []
        if fields.has("completion") or not data.prompts_only:
            answered = as_messages(fields.require("completion"), "assistant", "completion", fields, tools)
        names = ["prompt"] * len(asked) + ["completion"] * len(answered)
        return conversation(fields, [*asked, *answered], data, names)

    return map_rows(source, record, data)
