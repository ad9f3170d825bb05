"""`data=auto`: recognises the format by the fields of a file's first row."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from itertools import chain

from gemma_tune.config import DataConfig
from gemma_tune.config.data import FORMATS
from gemma_tune.data.files import Row
from gemma_tune.data.records import BadRow

# Common field names of a question and its answer, for the message.
_PAIRS = [
    ("prompt", "answer"), ("prompt", "solution"), ("prompt", "ground_truth"), ("problem", "solution"),
    ("problem", "answer"), ("question", "answer"), ("instruction", "response"), ("query", "response"),
    ("input", "output"),
    ("prompt", "response"), ("question", "response"), ("input", "target"), ("source", "target"),
]  # fmt: skip


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
                fields = importlib.import_module(f"gemma_tune.data.formats.{name}").fields(data)
                if fields and all(field in row[1] for field in fields):
                    return name, chain(looked_at, rows)
        if data.on_bad_row != "skip":
            break
    return None, chain(looked_at, rows)


def refuse_rows(rows: Iterable[Row | BadRow]) -> Iterator[BadRow]:
    """A BadRow for each row of a file whose format isn't recognised; it says what to set."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        where, fields = row
        prompt, completion = next((p for p in _PAIRS if set(p) <= set(fields)), ("…", "…"))
        yield BadRow(
            f"{where}: the fields {', '.join(fields) or '(none)'} are those of no known format (messages; "
            "conversations; prompt and completion; chosen and rejected; instruction and output; text). For a question "
            f"and its answer: data=columns data.prompt_column={prompt} data.completion_column={completion}."
            + (" For prompts alone, with rewards: data.prompts_only=true." if "prompt" in fields else "")
        )
