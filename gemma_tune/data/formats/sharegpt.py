"""`data=sharegpt`: `conversations` of `from` and `value`, as in ShareGPT's exports and data sets that follow them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.conversation import conversation
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields
from gemma_tune.data.sources import Source, map_rows

_FIELD = "conversations"


def fits(row: Mapping[str, Any], data: DataConfig) -> bool:
    """Whether a row is of this format."""
    return _FIELD in row


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one conversation per row; messages may also have OpenAI's fields.

    The value of a `function_call` is JSON: `{"name": …, "arguments": {…}}` or a list of them.
    """

    def record(fields: RowFields) -> Record:
        return conversation(fields, fields.require(_FIELD), data, _FIELD)

    return map_rows(source, record, data)
