"""`data=unpaired_preference`: answers that are each labelled good or bad; TRL's `prompt`, `completion` and `label`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.file_rows import Row
from gemma_tune.data.formats import messages, preference, prompt_completion
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.sources import OpenRows, Source, read_rows

_LABEL = "label"
# A table's cells hold texts, and Python's and JSON's spelling of them
_MEANS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one record per row: of `prompt` and `completion`, or of `messages`, and `label`.

    The label is that of the last answer; earlier answers are history. A row with `chosen` and `rejected` instead is a
    pair, as in `data=preference`: two answers, the first good and the second bad.
    """
    for row in read_rows(source):
        if isinstance(row, BadRow):
            yield row
        elif preference.fits(row[1], data):
            yield from preference.read(OpenRows(iter([row])), data)
        else:
            yield _labelled(row, data)


def _labelled(row: Row, data: DataConfig) -> Record | BadRow:
    where, fields = row
    if _LABEL not in fields:
        return BadRow(
            f"{where}: there is no field {_LABEL!r}; found: {', '.join(fields) or 'none'}. Rows are prompt, completion "
            "and label, or messages and label, or pairs: chosen and rejected."
        )
    desirable = _MEANS.get(str(fields[_LABEL]).strip().lower())
    if desirable is None:
        return BadRow(f"{where}: label is {fields[_LABEL]!r}, and must be true (a good answer) or false (a bad one).")
    rest = {name: value for name, value in fields.items() if name != _LABEL}
    reader: Any = messages if messages.fits(rest, data) else prompt_completion
    made: Record | BadRow = next(reader.read(OpenRows(iter([(where, rest)])), data))
    if isinstance(made, BadRow):
        return made
    said = made.messages or []
    if said[-1]["role"] != "assistant":
        return BadRow(f"{where}: it ends with the role {said[-1]['role']!r}; the label needs an answer at the end.")
    if said[-1].get("weight") == 0:
        return BadRow(f"{where}: the labelled answer has the weight 0; leave the weight out.")
    said = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in said[:-1]] + said[-1:]
    return replace(made, messages=said, desirable=desirable, row=dict(fields))
