"""Readers of the user's own, `data.format=path/to/file.py:function`: what they give, and what they raise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path

from gemma_tune.config import DataConfig
from gemma_tune.config.own_functions import READER
from gemma_tune.data.conversation import answers_to_train
from gemma_tune.data.formats.preference import Side, pair
from gemma_tune.data.messages import checked_messages
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields
from gemma_tune.data.sources import Source, media_folder
from gemma_tune.data.tools import checked_tools
from gemma_tune.errors import RunError, UserError
from gemma_tune.user_code import failure, in_message, load_function, split


def own_records(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """The records of a reader of the user's own, checked like those of our formats.

    Raises:
        UserError: The reader can't be loaded, or raised an exception: file and line of it, and the last row it gave.
        BadRow: It gave no records, or raised this; it ends the file.
    """
    for record in _given(source, data):
        if isinstance(record, BadRow) or record.messages is None:
            yield record
            continue
        fields = RowFields(record.where, {}, data.ignore_fields, (), media_folder(source, data))
        try:
            tools = checked_tools(record.tools, record.where)
            messages = checked_messages(record.messages, record.where, not data.prompts_only, fields, tools=tools)
            if record.rejected is None:
                made = replace(record, messages=answers_to_train(messages, record.where, data), tools=tools)
            else:
                places = ["messages"] * len(record.prompt) + ["rejected"] * len(record.rejected)
                other = Side("rejected", [*record.prompt, *record.rejected], places)
                made = pair(record.where, Side("chosen", messages, "messages"), other, tools, fields)
                made = replace(made, row=record.row)
            yield fields.noted(made)
        except BadRow as error:
            yield error


def _given(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """What the reader gives, row by row."""
    made_by, last = f"data.format={data.format}", f"while reading {source}"
    read = load_function(data.format, "data.format", READER)
    try:
        rows = read(source, data)
        if not isinstance(rows, Iterable):
            raise BadRow(f"{source}: {made_by} gave {type(rows).__name__}, no list of Record; yield or return them.")
        for row in rows:
            if isinstance(row, BadRow):
                yield _placed(row, source)
                continue
            if not isinstance(row, Record):
                raise BadRow(f"{source}: {made_by} gave {type(row).__name__}, not Record.")
            last = f"after the row {row.where}"
            yield row
    except BadRow as error:
        raise _placed(error, source) from error
    except (UserError, RunError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.filename and Path(error.filename) == source:
            raise  # said as of every file of rows
        file = split(data.format)[0]
        said = in_message(made_by, failure(error, file).removesuffix("."), file)
        raise UserError(f"{said} ({last}).{_record_takes(error)}") from error


def _placed(row: BadRow, source: Source) -> BadRow:
    """The same, with the file's name where the reader did not write it."""
    name = source.name if isinstance(source, Path) else str(source)
    return row if name in str(row) else BadRow(f"{source}: {row}")


def _record_takes(error: BaseException) -> str:
    """The fields of a Record, where one was made with other names."""
    if not (isinstance(error, TypeError) and "Record.__init__()" in str(error)):
        return ""
    return f" A Record takes {', '.join(field.name for field in fields_of(Record))} (docs/extending.md)."
