"""`data=unpaired_preference`: answers that are each labelled good or bad; TRL's `prompt`, `completion` and `label`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.conversation import last_only
from gemma_tune.data.file_rows import Row
from gemma_tune.data.formats import messages, preference, prompt_completion
from gemma_tune.data.known_fields import LABELS, switch_of
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.sources import OpenRows, Source, folder_of, read_rows


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one record per row: of `prompt` and `completion`, or of `messages`, and `label`.

    The label is that of the last answer; earlier answers are history. A row with `chosen` and `rejected` instead is a
    pair, as in `data=preference`: two answers, the first good and the second bad.
    """
    for row in read_rows(source):
        if isinstance(row, BadRow):
            yield row
        elif preference.fits(row[1], data):
            yield from preference.read(OpenRows(iter([row]), folder_of(source)), data)
        else:
            yield _labelled(row, data, folder_of(source))


def _labelled(row: Row, data: DataConfig, folder: Path | None) -> Record | BadRow:
    where, fields = row
    name = next((name for name in LABELS if name in fields and name not in data.ignore_fields), None)
    if name is None:
        return BadRow(
            f"{where}: there is no field 'label'; found: {', '.join(fields) or 'none'}. Rows are prompt, completion "
            "and label, or messages and label, or pairs: chosen and rejected."
        )
    try:
        said = switch_of(fields[name])
    except ValueError:
        said = None
    if said is None and (fields[name] is None or fields[name] != fields[name]):
        return BadRow(
            f"{where}: {name} is missing (null or NaN): write true (a good answer) or false (a bad one), or leave such "
            "rows out with data.on_bad_row=skip."
        )
    if said is None:
        return BadRow(f"{where}: {name} is {fields[name]!r}, and must be true (a good answer) or false (a bad one).")
    rest = {key: value for key, value in fields.items() if key != name}
    reader: Any = messages if messages.fits(rest, data) else prompt_completion
    made: Record | BadRow = next(reader.read(OpenRows(iter([(where, rest)]), folder), data))
    if isinstance(made, BadRow):
        return made
    talk = made.messages or []
    if talk[-1]["role"] != "assistant":
        return BadRow(f"{where}: it ends with the role {talk[-1]['role']!r}; the label needs an answer at the end.")
    if talk[-1].get("weight") == 0:
        return BadRow(f"{where}: the labelled answer has the weight 0; leave the weight out.")
    return replace(made, messages=last_only(talk), desirable=bool(said), row={**made.row, name: fields[name]})
