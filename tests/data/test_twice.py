"""Two values under one name in an object of JSON: read by nobody in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from row_files import refusal, turn

from gemma_tune.config import ChatConfig, DataConfig
from gemma_tune.data.prompts import read_chat_prompts
from gemma_tune.data.reading import training
from gemma_tune.errors import UserError

GOOD = json.dumps({"messages": turn("Why?", "So.")})
ROW = '{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "a", "content": "b"}]}'
SAID = "an object has two values under the name 'content', and only one can be read: keep one."


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("rows.jsonl", f"{GOOD}\n{GOOD}\n{ROW}\n{GOOD}\n", ":3"),
        ("rows.jsonl", f"{ROW}\n{GOOD}\n", ":1"),
        ("rows.jsonl", ROW, ":1"),
        ("rows.jsonl", ROW.replace("[{", "[\n{"), ":1"),
        ("rows.json", f"[{GOOD},\n{ROW},\n{GOOD}]", ":2"),
        ("rows.jsonl", f"{GOOD}\n{ROW}".replace('", "', '",\n"'), ":4"),
    ],
    ids=["a line", "the first line", "one row", "over lines", "an array", "objects over lines"],
)
def test_a_row_with_two_values_under_one_name(tmp_path: Path, name: str, text: str, where: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    assert refusal(DataConfig(train_file=str(file))).startswith(f"{file}{where}: {SAID}")
    good = text.count("So.")
    if good:  # the others can still be read
        assert len(list(training(DataConfig(train_file=str(file), on_bad_row="skip")))) == good
    with pytest.raises(UserError, match="under the name 'content'"):
        read_chat_prompts(ChatConfig(prompts_file=str(file)))


def test_rows_below_a_field(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(f'{{"data": [{ROW}]}}', encoding="utf-8")
    for field in (None, "data"):
        assert SAID in refusal(DataConfig(train_file=str(tmp_path / "rows.json"), field=field))


def test_the_same_value_twice_is_one(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(ROW.replace('"a"', '"b"') + "\n" + GOOD, encoding="utf-8")
    assert [record.answer for record in training(DataConfig(train_file=str(file)))] == ["b", "So."]
