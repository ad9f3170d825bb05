"""`data=alpaca`: instruction, optional input, and output, as in Stanford Alpaca's data."""

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
    return "instruction" in row and "output" in row


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one conversation per row; instruction and input form the user's turn, separated by an empty line.

    `system`, and earlier turns as pairs in `history`, are optional (LLaMA-Factory's fields).
    """

    def record(fields: RowFields) -> Record:
        asked = fields.text("instruction")
        more = fields.optional_text("input")
        answer = as_messages(fields.text("output"), "assistant", "output", fields, row_tools(fields, data))
        messages = [{"role": "user", "content": f"{asked}\n\n{more}" if more else asked}]
        return conversation(fields, [*messages, *answer], data, ["instruction"] + ["output"] * len(answer))

    return map_rows(source, record, data)
