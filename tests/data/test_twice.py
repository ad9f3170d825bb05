"""Two values under one name in an object of JSON: read by nobody in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from row_files import refusal, turn

from gemma_tune.config import ChatConfig, DataConfig
from gemma_tune.data.prompts import read_chat_prompts, read_tools
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


CALL = '{"name": "add", "arguments": {"n": 1, "n": 2}}'
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}
ASKED = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


def _calling(call: object) -> list[dict[str, object]]:
    return [ASKED[0], {"role": "assistant", "content": "", "tool_calls": call}]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": _calling([{"name": "add", "arguments": '{"n": 1, "n": 2}'}])}, "n"),
        ({"messages": _calling([CALL])}, "n"),
        ({"messages": _calling(f"[{CALL}]")}, "n"),
        ({"messages": _calling([{"name": "add", "arguments": "{'n': 1, 'n': 2}"}])}, "n"),
        ({"messages": ASKED, "tools": '[{"name": "add", "name": "sub", "parameters": {}}]'}, "name"),
        ({"messages": ASKED, "tools": ['{"name": "add", "parameters": {"type": "object", "type": "array"}}']}, "type"),
        ({"messages": ASKED, "tools": [{"name": "add", "parameters": '{"type": "object", "type": "array"}'}]}, "type"),
        ({"messages": '[{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]'},
         "content"),
        ({"messages": ['{"role": "user", "content": "a", "content": "b"}', json.dumps(ASKED[1])]}, "content"),
        ({"prompt": '[{"role": "user", "content": "a", "content": "b"}]', "completion": "c"}, "content"),
    ],
    ids=["arguments", "a call", "calls", "as Python prints it", "tools", "a tool", "parameters", "messages",
         "a message", "a prompt"],
)  # fmt: skip
def test_two_values_in_a_text_of_json(tmp_path: Path, row: dict[str, object], name: str) -> None:
    """The same rule for what a row holds as text."""
    file = tmp_path / "rows.jsonl"
    tools = {} if "tools" in row or "prompt" in row else {"tools": [TOOL]}
    file.write_text(json.dumps({**row, **tools}) + "\n", encoding="utf-8")
    said = refusal(DataConfig(train_file=str(file)))
    at = "tools: " if "tools" in row else ""  # said of tools in every refusal
    assert said.startswith(f"{file}:1: {at}an object has two values under the name {name!r}"), said


def test_a_text_that_is_trained_as_it_is(tmp_path: Path) -> None:
    """An answer, or a result, that is JSON is no structure of the row's."""
    answer = '{"n": 1, "n": 2}'
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "Why?", "completion": answer}, {"messages": turn("Why?", answer)}]
    for row in rows:
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")
        assert [record.answer for record in training(DataConfig(train_file=str(file)))] == [answer]


def test_a_column_within_a_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"ticket": '{"q": "a", "q": "b"}', "answer": "c"}) + "\n", encoding="utf-8")
    data = DataConfig(format="columns", train_file=str(file), prompt_column="ticket.q", completion_column="answer")
    assert "under the name 'q'" in refusal(data)


def test_tools_of_a_chat(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text('[{"name": "add", "name": "sub", "parameters": {}}]', encoding="utf-8")
    with pytest.raises(UserError, match="under the name 'name'"):
        read_tools(ChatConfig(tools_file=str(tmp_path / "tools.json")))
