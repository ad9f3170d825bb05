"""From the configuration's files to rendered rows: read, split, render, count."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gemma_tune.chat import Rendered, render_chat, render_text
from gemma_tune.config import DataConfig
from gemma_tune.data.records import BadRow, Record, checked_messages, checked_tools
from gemma_tune.errors import UserError
from gemma_tune.paths import resolve
from gemma_tune.plugins import load_function

_FIRST = 200


@dataclass
class Rows:
    """Rendered rows and what became of the rows read.

    Attributes:
        records: The rows that are used, as read.
        rendered: The same rows as token ids and labels.
        read: Rows read.
        cut: Rows longer than max_length, of which only the beginning is used.
        dropped: `file:line` of the rows of which cutting left no trained token.
    """

    records: list[Record] = field(default_factory=list)
    rendered: list[Rendered] = field(default_factory=list)
    read: int = 0
    cut: int = 0
    dropped: list[str] = field(default_factory=list)

    @property
    def highest_id(self) -> int:
        """The highest token id of all rows; 0 without rows."""
        return max((max(r.input_ids) for r in self.rendered), default=0)

    def counts(self) -> dict[str, int]:
        """Rows and tokens, as the report gives them. Tokens are those of the rows used, after cutting."""
        return {
            "rows_read": self.read,
            "rows": len(self.rendered),
            "rows_cut": self.cut,
            "rows_dropped": len(self.dropped),
            "tokens": sum(len(r.input_ids) for r in self.rendered),
            "longest_row": max((len(r.input_ids) for r in self.rendered), default=0),
            "trained_tokens": sum(r.trained_tokens for r in self.rendered),
        }


def _records(path: Path, data: DataConfig, limit: int | None) -> Iterator[Record]:
    if ":" not in data.format:
        yield from islice(importlib.import_module(f"gemma_tune.data.{data.format}").read(path, data), limit)
        return
    for record in islice(load_function(data.format, "data.format")(path, data), limit):
        if not isinstance(record, Record):
            raise BadRow(f"{path}: data.format={data.format} gave {type(record).__name__}, not Record.")
        if record.messages is not None:
            messages = checked_messages(record.messages, record.where)
            record = replace(record, messages=messages, tools=checked_tools(record.tools, record.where))
        yield record


def _file(key: str, file: str, data: DataConfig, limit: int | None) -> list[Record]:
    """All rows of one file, which must hold some."""
    try:
        records = list(_records(resolve(file), data, limit))
    except BadRow as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{key}: {error.filename}: the file can't be read ({error.strerror}).") from error
    if not records:
        raise UserError(f"{key}={file}: the file holds no rows.")
    return records


def read_records(data: DataConfig, seed: int) -> tuple[list[Record], list[Record]]:
    """The rows to train on and the rows held out.

    A share is drawn with `seed` from the rows that max_train_samples leaves; both parts keep the file's order.

    Raises:
        UserError: A bad row (file and line), or no rows at all.
    """
    train = _file("data.train_file", data.train_file, data, data.max_train_samples)
    held_out: list[Record] = []
    if data.validation_file:
        held_out = _file("data.validation_file", data.validation_file, data, None)
    if data.validation_split_percentage:
        n = max(1, round(len(train) * data.validation_split_percentage / 100))
        if n >= len(train):
            raise UserError(
                f"data.train_file={data.train_file}: holding out {n} of {len(train)} rows leaves none to train on."
            )
        chosen = set(random.Random(seed).sample(range(len(train)), n))
        held_out = [r for i, r in enumerate(train) if i in chosen]
        train = [r for i, r in enumerate(train) if i not in chosen]
    return train, held_out[: data.max_eval_samples]


def read_tests(data: DataConfig) -> dict[str, list[Record]]:
    """The test rows of each file, by the file's name in `data.test_files`.

    Raises:
        UserError: A bad row (file and line), a file without rows, or a row that isn't a conversation.
    """
    tests: dict[str, list[Record]] = {}
    for name, file in data.test_files.items():
        key = f"data.test_files.{name}"
        if file is None:
            continue
        tests[name] = _file(key, file, data, data.max_test_samples)
        plain = next((r for r in tests[name] if r.messages is None), None)
        if plain is not None:
            raise UserError(f"{key}: {plain.where} is running text, and there is no answer in it to compare with.")
    return tests


def check_first_rows(data: DataConfig, seed: int) -> None:
    """Reads the first rows: most mistakes in a data file show there, and torch need not be imported to say so.

    Raises:
        UserError: As `read_records`.
    """
    few = replace(data, max_train_samples=min(data.max_train_samples or _FIRST, _FIRST))
    read_records(few, seed)
    read_tests(replace(few, max_test_samples=min(data.max_test_samples or _FIRST, _FIRST)))


def render_rows(records: list[Record], tokenizer: Any, max_length: int, name: str) -> Rows:
    """Renders rows, cuts those longer than max_length, and drops those left without a trained token.

    Args:
        records: Rows as read.
        tokenizer: A fast tokenizer.
        max_length: Tokens of a row at most.
        name: What the rows are, for the progress bar and the message.

    Raises:
        UserError: No row is left.
    """
    rows = Rows(read=len(records))
    for record in tqdm(records, desc=f"render {name}", unit=" rows", disable=None, leave=False):
        if record.messages is not None:
            rendered = render_chat(tokenizer, record.messages, record.tools)
        else:
            rendered = render_text(tokenizer, record.text or "")
        if len(rendered.input_ids) > max_length:
            rows.cut += 1
            rendered = rendered.cut(max_length)
        if rendered.trained_tokens == 0:
            rows.dropped.append(record.where)
            continue
        rows.records.append(record)
        rows.rendered.append(rendered)
    if records and not rows.rendered:
        raise UserError(
            f"{name}: none of {len(records)} rows has a trained token within train.max_length={max_length}; raise it."
        )
    return rows


def load_rows(data: DataConfig, tokenizer: Any, max_length: int, seed: int) -> tuple[Rows, Rows]:
    """The rendered rows to train on and those held out (perhaps none).

    Raises:
        UserError: A bad row, or no row left.
    """
    train, held_out = read_records(data, seed)
    return (
        render_rows(train, tokenizer, max_length, "training rows"),
        render_rows(held_out, tokenizer, max_length, "held-out rows"),
    )
