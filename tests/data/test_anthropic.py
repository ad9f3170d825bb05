"""Messages in Anthropic's form: calls, results and thinking in content parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from row_files import refusal, row_of, write

from gemma_tune.config import DataConfig

USER = {"role": "user", "content": "Weather in Oslo?"}
THOUGHT = {"type": "thinking", "thinking": "Ask the tool.", "signature": "xyz"}
TEXT = {"type": "text", "text": "One moment."}
CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "4 degrees", "is_error": False}
DONE = {"role": "assistant", "content": "It is cold."}
TOOL = {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}
CALLED = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def talk(*middle: Any, last: dict[str, Any] = DONE) -> dict[str, Any]:
    return {"messages": [USER, *middle, last], "tools": [TOOL]}


def said(*parts: Any, role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


def test_a_call_its_result_and_thinking(tmp_path: Path) -> None:
    record = row_of(tmp_path, talk(said(THOUGHT, TEXT, CALL), said(RESULT, role="user")))
    assert record.messages == [
        USER,
        {"role": "assistant", "content": [TEXT], "tool_calls": [CALLED], "reasoning_content": "Ask the tool."},
        {"role": "tool", "content": "4 degrees", "name": "weather"},
        DONE,
    ]
    assert record.unused == ("messages.content.signature",) and record.tools
    assert record.tools[0]["function"]["parameters"] == TOOL["input_schema"]


def test_several_calls_and_results(tmp_path: Path) -> None:
    other = {**CALL, "id": "t2", "input": {"city": "Rome"}, "cache_control": {"type": "ephemeral"}}
    second = {
        "type": "tool_result",
        "tool_use_id": "t2",
        "content": [{"type": "text", "text": "Sun"}],
        "is_error": True,
    }
    record = row_of(tmp_path, talk(said(CALL, other), said(second, RESULT, role="user")))
    assert record.messages and [m["role"] for m in record.messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    calls = record.messages[1]["tool_calls"]
    assert record.messages[1]["content"] == ""
    assert [c["function"]["arguments"]["city"] for c in calls] == ["Oslo", "Rome"]
    assert record.messages[2]["content"] == second["content"] and record.messages[3]["content"] == "4 degrees"
    assert set(record.unused) == {"messages.content.cache_control", "messages.content.is_error"}
    ignored = row_of(
        tmp_path, talk(said(CALL, other), said(second, RESULT, role="user")), ignore_fields=list(record.unused)
    )
    assert ignored.messages == record.messages and not ignored.unused


def test_the_same_in_other_fields(tmp_path: Path) -> None:
    """Every format reads them; a call that stands under `tool_calls`, too, is one call; an empty result is one."""
    middle = [said(CALL), said({**RESULT, "content": None}, role="user")]
    rows = [
        talk(*middle), {"prompt": [USER, *middle], "completion": [DONE], "tools": [TOOL]},
        {"conversations": [USER, *middle, DONE], "tools": [TOOL]},
        talk({**middle[0], "tool_calls": [{**CALLED, "id": "t1"}]}, middle[1]),
    ]  # fmt: skip
    for row in rows:
        record = row_of(tmp_path, row)
        assert record.messages and record.messages[1]["tool_calls"] == [CALLED]
        assert record.messages[2] == {"role": "tool", "content": "", "name": "weather"}
    thought = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, TEXT]  # Mistral's
    record = row_of(tmp_path, talk(last=said(*thought)))
    assert record.messages and record.messages[-1]["reasoning_content"] == "Hm."


@pytest.mark.parametrize(
    ("middle", "says"),
    [
        ([said(CALL, TEXT), said(RESULT, role="user")], "parts in the order tool_use, text; only one part of thinking"),
        ([said(TEXT, THOUGHT, CALL), said(RESULT, role="user")], "put them in this order"),
        ([said(THOUGHT, THOUGHT, CALL), said(RESULT, role="user")], "only one part of thinking"),
        ([said({"type": "redacted_thinking", "data": "…"}, CALL), said(RESULT, role="user")], "'redacted_thinking'"),
        ([said(CALL), said(RESULT, TEXT, role="user")], "'user' follows 'tool'"),
        (
            [said(CALL), said({**RESULT, "content": [{"type": "image", "source": {}}]}, role="user")],
            "source: holds no path",
        ),
        ([{**said(THOUGHT, CALL), "reasoning": "Other."}, said(RESULT, role="user")], "two texts of thinking"),
        ([said({"type": "thinking"}, CALL), said(RESULT, role="user")], "no text under `thinking`"),
        ([said(CALL, role="user")], "in an assistant's message"),
        ([said(THOUGHT, role="user")], "in an assistant's message"),
        ([said(RESULT)], "'tool_result'"),
        ([said({"type": "server_tool_use", "id": "1", "name": "web", "input": {}})], "'server_tool_use'"),
    ],
)
def test_what_has_no_place(tmp_path: Path, middle: list[Any], says: str) -> None:
    assert says in refusal(DataConfig(train_file=write(tmp_path / "rows.jsonl", talk(*middle))))
