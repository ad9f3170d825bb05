"""A field that isn't used is named by the one it stands in; what is known by name is read beside any column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from row_files import refusal, row_of, write

from gemma_tune.config import DataConfig
from gemma_tune.data.messages import checked_messages
from gemma_tune.data.records import BadRow
from gemma_tune.data.row_fields import RowFields

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
COLUMNS = {"format": "columns", "prompt_column": "ask.q", "completion_column": "a"}


def marked(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages, each with a field of its own that nobody knows."""
    return [{**m, f"x{i}": 1} for i, m in enumerate(messages)]


@pytest.mark.parametrize(
    ("row", "keys", "unused"),
    [
        ({"prompt": marked(SYSTEM, USER), "completion": marked(ANSWER)}, {},
         ("prompt.x0", "prompt.x1", "completion.x0")),
        ({"prompt": "Why?", "completion": marked(ANSWER)}, {}, ("completion.x0",)),
        ({"ask": {"q": marked(USER)}, "a": marked(ANSWER)}, COLUMNS, ("ask.q.x0", "a.x0")),
        ({"messages": marked(SYSTEM, USER, ANSWER), "history": marked(USER, ANSWER)}, {},
         ("messages.x0", "history.x0", "history.x1", "messages.x1", "messages.x2")),
        ({"instruction": "Why?", "output": "So.", "history": marked(USER, ANSWER)}, {}, ("history.x0", "history.x1")),
        ({"prompt": marked(USER), "chosen": marked(ANSWER), "rejected": marked({**ANSWER, "content": "No."})}, {},
         ("prompt.x0", "chosen.x0", "rejected.x0")),
        ({"prompt": marked(SYSTEM, USER), "chosen": marked(USER, ANSWER), "rejected": marked(USER, {**ANSWER, "content": "No."})}, {},  # noqa: E501
         ("prompt.x0", "chosen.x0", "chosen.x1", "rejected.x0", "rejected.x1")),
        ({"answers": {"text": ["So.", "Thus."]}, "q": "Why?"},
         {"format": "columns", "prompt_column": "q", "completion_column": "answers.text.0"}, ("answers.text.1",)),
    ],
)  # fmt: skip
def test_fields_of_messages(tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], unused: tuple[str, ...]) -> None:
    assert row_of(tmp_path, row, **keys).unused == unused
    assert not row_of(tmp_path, row, **keys, ignore_fields=list(unused)).unused


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ({"prompt": [{**USER, "content": "nan"}], "completion": "So."}, ("prompt",)),
        ({"prompt": "None", "completion": [ANSWER]}, ("prompt",)),
        ({"prompt": "None", "completion": [{**ANSWER, "content": "nan"}]}, ("prompt", "completion")),
        ({"prompt": "Why?", "completion": [{**ANSWER, "content": [{"type": "text", "text": "nan"}]}]}, ("completion",)),
        ({"instruction": "nan", "output": "nan"}, ("instruction", "output")),
        ({"messages": [USER, ANSWER], "history": [{**USER, "content": "null"}, ANSWER]}, ("history",)),
        ({"prompt": "nan", "chosen": "So.", "rejected": "NaN"}, ("prompt", "rejected")),
    ],
)
def test_cells_without_a_value(tmp_path: Path, row: dict[str, Any], missing: tuple[str, ...]) -> None:
    assert row_of(tmp_path, row).missing == missing


@pytest.mark.parametrize("depth", [1, 2])
def test_what_stands_beside_a_nested_column(tmp_path: Path, depth: int) -> None:
    """Each known field, beside the conversation or one level further out."""
    body = {"system": "Be brief.", "tools": [TOOL], "history": [["Hi", "Hello"]], "loss_mask": [1], "id": 7}
    inner = {"messages": [USER, ANSWER]}
    row = {"body": {**inner, **body} if depth == 1 else {"talk": inner, **body}}
    column = "body.messages" if depth == 1 else "body.talk.messages"
    record = row_of(tmp_path, row, format="messages", messages_column=column)
    hello = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert record.messages == [SYSTEM, *hello, USER, ANSWER] and record.tools == [TOOL]
    assert record.unused == ("body.id",)
    asked = {"ask": {"q": "Why?", "system_prompt": "Be brief."}, "a": {"text": "So.", "reasoning": "Hm."}}
    record = row_of(tmp_path, asked, **{**COLUMNS, "completion_column": "a.text"})
    assert record.messages == [SYSTEM, USER, {**ANSWER, "reasoning_content": "Hm."}] and not record.unused
    file = write(tmp_path / "off.jsonl", {"body": {**inner, "train": False}})
    said = refusal(DataConfig(format="messages", messages_column="body.messages", train_file=file))
    assert "every answer is switched off" in said
    own = {"body": {**inner, "system": "Other."}, "system": "Be brief."}
    record = row_of(tmp_path, own, format="messages", messages_column="body.messages")
    assert record.messages == [SYSTEM, USER, ANSWER] and record.unused == ("body.system",)


@pytest.mark.parametrize("mode", ["on", "off", "High", True, 1])
def test_a_mode_is_no_thinking(tmp_path: Path, mode: Any) -> None:
    """Nemotron's `reasoning: "on"` says how the answer was made."""
    assert row_of(tmp_path, {"prompt": "Why?", "completion": "So.", "reasoning": mode}).unused == ("reasoning",)
    record = row_of(tmp_path, {"messages": [USER, {**ANSWER, "thinking": mode}]})
    assert record.messages == [USER, ANSWER] and record.unused == ("messages.thinking",)


@pytest.mark.parametrize("system", ["", " ", "Be brief.", "nan"])
@pytest.mark.parametrize("asked", ["", "Why?", "None", "<h1>"])
@pytest.mark.parametrize("said", ["", " ", "So.", "null", "\n"])
def test_bare_messages_are_read_as_others(system: str, asked: str, said: str) -> None:
    """A role and a text and nothing else take a short way, which a name to ignore closes."""
    messages = [{**SYSTEM, "content": system}, {**USER, "content": asked}, {**ANSWER, "content": said}]
    found = []
    for ignored in ((), ("x",)):
        fields = RowFields("f:1", {}, ignored)
        try:
            read: Any = checked_messages(messages, "f:1", fields=fields)
        except BadRow as error:
            read = str(error)
        found.append((read, list(fields.missing)))
    assert found[0] == found[1] and (said.strip() == "") == isinstance(found[0][0], str)


def test_openais_pairs(tmp_path: Path) -> None:
    row = {
        "input": {"messages": [SYSTEM, USER], "tools": [TOOL], "parallel_tool_calls": True},
        "preferred_output": [ANSWER],
        "non_preferred_output": marked({**ANSWER, "content": "No."}),
    }
    for form in ("auto", "preference", "unpaired_preference"):
        record = row_of(tmp_path, row, format=form)
        assert record.messages == [SYSTEM, USER, ANSWER] and record.tools == [TOOL]
        assert record.rejected == [{**ANSWER, "content": "No."}]
        assert record.unused == ("non_preferred_output.x0", "input.parallel_tool_calls")
    file = write(tmp_path / "same.jsonl", {**row, "non_preferred_output": [ANSWER]})
    assert "preferred_output and non_preferred_output are the same answer" in refusal(DataConfig(train_file=file))
    file = write(tmp_path / "alone.jsonl", {**row, "input": {}})
    assert "there is no field 'input.messages'" in refusal(DataConfig(train_file=file))
