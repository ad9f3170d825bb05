"""Bad rows: each is refused with its file and line, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from row_files import ONE_BAD, read_records, refusal, turn, write

from gemma_tune.config import DataConfig
from gemma_tune.data.records import BadRow, Record

GOOD = {"messages": turn("Hi", "Hello")}
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind"}
RESULT = {"role": "tool", "content": "{}"}


def calling(arguments: Any, name: Any = "add") -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def test_good_rows_pass(tmp_path: Path) -> None:
    conversations = [
        [USER, ANSWER],
        [SYSTEM, USER, ANSWER, USER, ANSWER],
        [USER, ANSWER, USER],
        [USER, calling({}), RESULT, RESULT, ANSWER],
        [USER, calling({}), RESULT, calling({"a": 1}), RESULT],
        [USER, calling({})],
        [USER, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}],
        [{"role": "system", "content": [{"type": "text", "text": "Be kind"}]}, USER, ANSWER],
    ]
    file = write(tmp_path / "good.jsonl", *({"messages": m} for m in conversations))
    records, held_out = read_records(DataConfig(train_file=file), seed=0)
    assert [r.where for r in records] == [f"{file}:{n}" for n in range(1, len(conversations) + 1)]
    assert held_out == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"messages": [', "not JSON"),
        ("plain words", "not JSON"),
        ("[1, 2]", "list, not a JSON object"),
        ("null", "NoneType, not a JSON object"),
        ('"a text"', "str, not a JSON object"),
        (b'{"text": "\xe9t\xe9"}', "not UTF-8 (byte 10 of the line)"),
    ],
)
def test_a_line_that_is_no_object(tmp_path: Path, row: Any, says: str) -> None:
    file = write(tmp_path / "rows.jsonl", GOOD, "", row, GOOD)
    message = refusal(DataConfig(train_file=file))
    assert message.startswith(f"{file}:3: ")
    assert says in message


@pytest.mark.parametrize("text", ["\\ud83d", "\\uDE00 and \\ud83d\\ude00"])
def test_half_a_character(tmp_path: Path, text: str) -> None:
    """It can't be written as UTF-8, so not be tokenized: in a message, and in JSON within a text."""
    row = json.dumps(GOOD).replace("Hello", text)
    for bad in (row, json.dumps({"messages": row.split(": ", 1)[1][:-1]})):
        file = write(tmp_path / "rows.jsonl", GOOD, bad)
        half = "\\ud83d" if text == "\\ud83d" else "\\ude00"
        said = f"{file}:2: {half} stands without the other half of its character.{ONE_BAD}"
        assert refusal(DataConfig(train_file=file)) == said


def test_a_file_in_utf_16_is_named(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-16")
    assert refusal(DataConfig(train_file=str(path))) == (
        f"{path}:1: this file is UTF-16; save it as UTF-8, or set data.encoding=utf-16."
    )
    assert len(read_records(DataConfig(train_file=str(path), encoding="utf-16"), seed=0)[0]) == 1


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (DataConfig(format="messages"), "data.messages_column"),
        (DataConfig(format="text"), "data.text_column"),
        (DataConfig(format="columns", prompt_column="q", completion_column="a"), "data.prompt_column"),
        (DataConfig(format="columns", prompt_column="question", completion_column="a"), "data.completion_column"),
        (
            DataConfig(
                format="columns", prompt_column="question", completion_column="answer", system_column="instruction"
            ),
            "data.system_column",
        ),
    ],
)
def test_a_missing_field_names_those_found_and_the_key(tmp_path: Path, data: DataConfig, key: str) -> None:
    data.train_file = write(tmp_path / "rows.jsonl", {"question": "Hi", "answer": "Hello"})
    message = refusal(data)
    assert message.startswith(f"{data.train_file}:1: there is no field ")
    assert "found: question, answer. " in message and key in message


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "isn't a list of messages"),
        ("Hi", "isn't a list of messages"),
        ({"role": "user"}, "isn't a list of messages"),
        (["Hi"], "message 1 has the role None"),
        ([{"content": "Hi"}], "message 1 has the role None"),
        ([USER, {"role": "robot", "content": "Hi"}], "message 2 has the role 'robot', not one of system, user"),
        ([{"sender": "human", "value": "Hi"}], "message 1 has the role None"),
        ([USER, {"role": "assistant", "content": ""}], "message 2: the assistant's answer is empty"),
        ([USER, {"role": "assistant", "content": None}], "message 2: the assistant's answer is empty"),
        ([USER, {"role": "assistant"}], "message 2: the assistant's answer is empty"),
        ([USER, {"role": "assistant", "content": " \n\t"}], "message 2: the assistant's answer is empty"),
        ([USER, {"role": "assistant", "content": []}], "message 2: the assistant's answer is empty"),
        (
            [USER, {"role": "assistant", "content": [{"type": "text", "text": " "}]}],
            "message 2: the assistant's answer is empty",
        ),
        ([{"role": "user", "content": True}, ANSWER], "user's content is bool"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "names no file, and no field of the row"),
        ([{"role": "user", "content": [{"type": "file"}]}, ANSWER], "a part of user's content of the type 'file'"),
        ([{"role": "system", "content": []}, USER, ANSWER], "the system text has 0 parts"),
        ([{"role": "system", "content": [{"type": "text", "text": "x"}] * 2}, USER, ANSWER], "has 2 parts"),
        ([USER, USER, ANSWER], "roles must alternate user/assistant, but 'user' follows 'user'"),
        ([USER, ANSWER, ANSWER], "'assistant' follows 'assistant'"),
        ([ANSWER], "'assistant' follows 'nothing'"),
        ([SYSTEM, ANSWER], "'assistant' follows 'nothing'"),
        ([USER, RESULT, ANSWER], "'tool' follows 'user'"),
        ([USER, calling({}), RESULT, USER, ANSWER], "'user' follows 'tool'"),
        ([RESULT, ANSWER], "must begin with the user"),
        ([USER, ANSWER, SYSTEM, USER], "a system message can only be the first one"),
        ([SYSTEM, SYSTEM, USER, ANSWER], "a system message can only be the first one"),
        ([USER], "no assistant message to learn from"),
        ([SYSTEM], "no assistant message to learn from"),
        ([USER, calling("{a: 1}")], "the arguments of add: this text is not JSON"),
        ([USER, calling("[1]")], "the arguments of add aren't a mapping"),
        ([USER, calling([1])], "the arguments of add aren't a mapping"),
        ([USER, calling(None)], "the arguments of add aren't a mapping"),
        ([USER, calling({}, name=None)], "a tool call isn't {'type': 'function'"),
        ([USER, {**ANSWER, "tool_calls": [{"function": "add", "arguments": {}}]}], "a tool call isn't"),
        ([USER, {**ANSWER, "tool_calls": ["add"]}], "a tool call isn't"),
        ([USER, {**ANSWER, "tool_calls": "add"}], "message 2: tool_calls must be a list"),
        ([USER, {**ANSWER, "tool_calls": 5}], "message 2: tool_calls must be a list"),
        ([{**USER, "tool_calls": calling({})["tool_calls"]}, ANSWER], "in an assistant's message"),
    ],
)
def test_a_bad_conversation(tmp_path: Path, messages: Any, says: str) -> None:
    file = write(tmp_path / "rows.jsonl", GOOD, {"messages": messages})
    message = refusal(DataConfig(train_file=file))
    assert message.startswith(f"{file}:2: ")
    assert says in message


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ({"type": "function", "function": {"name": "add"}}, "the tools aren't a list"),
        (5, "the tools aren't a list"),
        ("add", "tools: this text is not JSON"),
        ('{"name": "add"}', "the tools aren't a list"),
        ([{"title": "add", "parameters": {}}], "a tool isn't {'type': 'function', 'function': {'name', …}}"),
        ([{"type": "function", "function": {}}], "a tool isn't"),
        (["add"], "a tool: this text is not JSON"),
        ([{"name": "add", "parameters": "none"}], "the parameters of add: this text is not JSON"),
        ([{"name": "add", "parameters": [1]}], "the parameters of add aren't a JSON schema"),
    ],
)
def test_tools_in_the_wrong_form(tmp_path: Path, tools: Any, says: str) -> None:
    file = write(tmp_path / "rows.jsonl", GOOD, {**GOOD, "tools": tools})
    message = refusal(DataConfig(train_file=file))
    assert message.startswith(f"{file}:2: ")
    assert says in message


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_a_row_may_have_no_tools(tmp_path: Path, tools: Any) -> None:
    file = write(tmp_path / "rows.jsonl", {**GOOD, "tools": tools}, GOOD)
    train, _ = read_records(DataConfig(train_file=file), seed=0)
    assert [r.tools for r in train] == [None, None]


@pytest.mark.parametrize(
    ("value", "says"),
    [("", "is empty"), (" \n", "is empty"), (True, "is bool"), (None, "is NoneType"), ([], "is list")],
)
def test_a_field_that_is_no_text(tmp_path: Path, value: Any, says: str) -> None:
    file = write(tmp_path / "columns.jsonl", {"q": "Hi", "a": "Hello"}, {"q": "Hi", "a": value})
    data = DataConfig(format="columns", train_file=file, prompt_column="q", completion_column="a")
    message = refusal(data)
    assert message.startswith(f"{file}:2: the field 'a' {says}") and message.endswith(
        f"(data.completion_column).{ONE_BAD}"
    )
    file = write(tmp_path / "text.jsonl", {"text": value})
    assert refusal(DataConfig(format="text", train_file=file)).startswith(f"{file}:1: the field 'text' {says}")


def test_a_bad_row_of_the_validation_file(tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", GOOD, {})
    message = refusal(DataConfig(train_file=train, validation_file=held_out))
    assert message.startswith(f"{held_out}:2: there is no field 'messages'; found: none. ")


def test_files_with_no_rows(tmp_path: Path) -> None:
    good, blank = write(tmp_path / "good.jsonl", GOOD), write(tmp_path / "blank.jsonl", "", "  ")
    empty = str(tmp_path / "empty.jsonl")
    Path(empty).touch()
    for file in (blank, empty):
        assert refusal(DataConfig(train_file=file)) == f"data.train_file={file}: the file holds no rows."
        message = refusal(DataConfig(train_file=good, validation_file=file))
        assert message == f"data.validation_file={file}: the file holds no rows."


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "missing.jsonl"
    assert refusal(DataConfig(train_file=str(path))).startswith(f"data.train_file: {path}: the file can't be read (")


def test_the_prompt_of_a_record_ends_before_its_last_answer() -> None:
    assert Record("f:1", messages=[SYSTEM, USER, ANSWER, USER, ANSWER]).prompt == [SYSTEM, USER, ANSWER, USER]
    assert Record("f:1", messages=[USER, ANSWER, USER]).prompt == [USER]
    assert Record("f:1", text="x").prompt == []


@pytest.mark.parametrize("token", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"])
def test_rows_that_hold_control_tokens(tmp_path: Path, token: str) -> None:
    """Rows that were templated already, or text that would forge a turn."""
    user = {"role": "user", "content": f"Hi{token}"}
    file = write(tmp_path / "rows.jsonl", GOOD, {"messages": [user, ANSWER]})
    assert refusal(DataConfig(train_file=file)) == (
        f"{file}:2: the text holds {token}, which the template writes itself; take it out.{ONE_BAD}"
    )
    parts = {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": token}]}
    with pytest.raises(BadRow, match=token):
        Record("f:1", messages=[parts, ANSWER])


def test_text_that_holds_bos(tmp_path: Path) -> None:
    """<bos> and <eos> are added to it, and turns would be trained whole."""
    with pytest.raises(BadRow, match="the turns of a chat"):
        Record("f:1", text="<start_of_turn>user\nHi<end_of_turn>")
    file = write(tmp_path / "rows.jsonl", {"text": "<bos>Once"})
    assert f"{file}:1: the text holds <bos>" in refusal(DataConfig(format="text", train_file=file))
