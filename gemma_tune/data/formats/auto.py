"""`data=auto`: recognises the format by the fields of a file's first row."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from gemma_tune.config import DataConfig
from gemma_tune.config.data import FORMATS
from gemma_tune.data.advice import LOOKED_AT, advice
from gemma_tune.data.file_rows import Row
from gemma_tune.data.records import BadRow


def recognise_format(rows: Iterator[Row | BadRow], data: DataConfig) -> tuple[str | None, Iterator[Row | BadRow]]:
    """The format whose fields the first row has, or None; where bad rows are skipped, the first row that fits one.

    Args:
        rows: All rows of a source.
        data: Names of fields, and what happens to bad rows.

    Returns:
        The format's name, and all rows from the first on.
    """
    looked_at = []
    for row in rows:
        looked_at.append(row)
        if not isinstance(row, BadRow):
            for name in FORMATS:
                if importlib.import_module(f"gemma_tune.data.formats.{name}").fits(row[1], data):
                    return name, chain(looked_at, rows)
        if data.on_bad_row != "skip":
            break
    return None, chain(looked_at, rows)


def refuse_rows(rows: Iterable[Row | BadRow], data: DataConfig) -> Iterator[BadRow]:
    """A BadRow for each row of a file whose format isn't recognised; it says what to set."""
    rows = iter(rows)
    first = list(islice(rows, LOOKED_AT))
    sample = [row[1] for row in first if not isinstance(row, BadRow)]
    for row in chain(first, rows):
        if isinstance(row, BadRow):
            yield row
            continue
        where, fields = row
        yield BadRow(
            f"{where}: the fields {', '.join(fields) or '(none)'} are those of no known format (messages; "
            "conversations; prompt and completion; chosen and rejected; instruction and output; source_lang_code, "
            "target_lang_code, text and translation; text alone). " + advice(row, data, sample)
        )
