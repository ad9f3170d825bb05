"""Small JSONL files, and what is said about a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.config import DataConfig
from gemma_tune.data.reading import training
from gemma_tune.data.records import Record
from gemma_tune.data.split import split_rows
from gemma_tune.errors import UserError

SCRIPTS = ["Où?", "Где?", "Πού;", "أين؟", "איפה?", "कहाँ?", "ที่ไหน", "在哪里?", "どこですか。", "어디에?", "👩‍🚀"]

# What ends the message about the only bad row of a file that is read up to it
ONE_BAD = " 1 row is bad of what was read; data.on_bad_row=skip leaves such rows out."


def write(path: Path, *rows: Any) -> str:
    """Writes one line a row: bytes as they are, text as UTF-8, all else as JSON."""
    lines = [
        r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)).encode()
        for r in rows
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def turn(question: str, answer: str, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation of one turn."""
    begin = [] if system is None else [{"role": "system", "content": system}]
    return [*begin, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def read_records(data: DataConfig, seed: int) -> tuple[list[Record], list[Record]]:
    """The rows to train on and those held out."""
    split = split_rows(data, seed)
    return list(split.train()), list(split.held_out())


def read(file: str | Path, **keys: Any) -> list[Record]:
    """The training rows of a file."""
    return list(training(DataConfig(format=keys.pop("format", "auto"), train_file=str(file), **keys)))


def row_of(folder: Path, row: dict[str, Any], **keys: Any) -> Record:
    """The record of a row, written to a file of its own."""
    (record,) = read(write(folder / "row.jsonl", row), **keys)
    return record


def refusal(data: DataConfig) -> str:
    """The message about the file."""
    with pytest.raises(UserError) as caught:
        read_records(data, seed=0)
    return str(caught.value)
