"""`data=messages`: conversations in the OpenAI format, with tools; also in ShareGPT's and Gemini's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.conversation import conversation
from gemma_tune.data.known_fields import CONVERSATIONS
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields, structure_in
from gemma_tune.data.sources import Source, map_rows

_ELSE = (
    "For a question and an answer in two fields use data=columns; for conversations in another field set "
    "data.messages_column; data=auto recognises other known formats."
)
_DEFAULT = DataConfig().messages_column


def fits(row: Mapping[str, Any], data: DataConfig) -> bool:
    """Whether a row is of this format: it has the field, or a list of messages under another known name."""
    fields = RowFields("", row)
    name = _column(fields, data)
    if name in row and name == data.messages_column:  # perhaps null in the first row
        return True
    value = structure_in(fields.peek(name))
    return (
        name != "conversations"
        and isinstance(value, list)
        and bool(value)
        and all(isinstance(structure_in(m), dict) for m in value)
    )


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one record per row."""

    def record(fields: RowFields) -> Record:
        name = _column(fields, data)
        return conversation(fields, fields.require(name, _ELSE), data, name)

    return map_rows(source, record, data)


def _column(fields: RowFields, data: DataConfig) -> str:
    """The field of the conversation: the one that is set, or the first known name that the row has."""
    names = CONVERSATIONS if data.messages_column == _DEFAULT else ()
    return next((name for name in (data.messages_column, *names) if fields.has(name)), data.messages_column)
