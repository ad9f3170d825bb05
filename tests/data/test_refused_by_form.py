"""Rows that the model's chats have no place for: refused with file and line, or left out and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forms_at_hand import tokenizer_of

from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.data.stream import stream_rows
from gemma_tune.errors import UserError

USER, ANSWER = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The second and the fourth of four rows have a system text."""
    chats = [[USER, ANSWER], [SYSTEM, USER, ANSWER]] * 2
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": c, "id": i}) + "\n" for i, c in enumerate(chats)), "utf-8")
    return path


@pytest.mark.parametrize("load", [load_rows, stream_rows])
def test_refused(load: object, file: Path) -> None:
    data = DataConfig(format="messages", train_file=str(file))
    said = r"rows.jsonl:2: there is no system role in Gemma 1 and 2: put the system text into the first user message"
    with pytest.raises(UserError, match=said):
        load(data, tokenizer_of("gemma"), 64, 0)  # type: ignore[operator]


def test_skipped(file: Path) -> None:
    data = DataConfig(format="messages", train_file=str(file), on_bad_row="skip")
    train, _ = load_rows(data, tokenizer_of("gemma"), 64, 0)
    assert (train.read, len(train.rendered), train.counts()["rows_skipped"]) == (2, 2, 2)
    assert [line.split(": ")[0] for line in train.left_out()] == [f"{file}:2", f"{file}:4"]
    assert any("2 bad rows were skipped" in note for note in train.notes("training rows"))


def test_another_form_has_a_place(file: Path) -> None:
    train, _ = load_rows(DataConfig(format="messages", train_file=str(file)), tokenizer_of("gemma4_v5"), 64, 0)
    assert len(train.rendered) == 4
