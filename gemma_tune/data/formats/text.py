"""`data=text`: running text, one document a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.conversation import refuse_printed
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields
from gemma_tune.data.sources import Source, map_rows

_DEFAULT = DataConfig().text_column


def fits(row: Mapping[str, Any], data: DataConfig) -> bool:
    """Whether a row is of this format: it has no other field, or the user has named the one with the text.

    Beside other columns a text may be anything, such as one message of a chat log.
    """
    others = set(row) - {data.text_column, *data.ignore_fields}
    return data.text_column in row and (data.text_column != _DEFAULT or not others)


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one record per row."""

    def record(fields: RowFields) -> Record:
        text = fields.text(data.text_column, "data.text_column")
        refuse_printed(text, data.text_column, fields.where)
        return Record(fields.where, text=text)

    return map_rows(source, record, data, conversation=False)
