"""What rows hold that only some forms have: developers, thinking, results with names; read, checked and rendered."""

from __future__ import annotations

from typing import Any

import pytest
from conversations import Message
from forms_at_hand import tokenizer_of

from gemma_tune.chat import render_chat
from gemma_tune.data.messages import checked_messages
from gemma_tune.data.records import BadRow, Record

USER: Message = {"role": "user", "content": "Hi"}
ANSWER: Message = {"role": "assistant", "content": "Hello"}


def calling(*names: str) -> Message:
    calls = [{"id": f"id_{n}", "type": "function", "function": {"name": n, "arguments": "{}"}} for n in names]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def test_a_developer_is_a_system() -> None:
    developer = {"role": "developer", "content": "Be brief."}
    assert checked_messages([developer, USER, ANSWER], "f:1")[0] == {"role": "system", "content": "Be brief."}
    with pytest.raises(BadRow, match="a system message can only be the first one"):
        checked_messages([USER, ANSWER, developer], "f:1")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_has_one_name(key: str) -> None:
    clean = checked_messages(
        [USER, ANSWER | {key: "Hm."}, USER, ANSWER | {key: None}, USER, ANSWER | {key: " "}], "f:1"
    )
    assert clean[1] == ANSWER | {"reasoning_content": "Hm."} and clean[3] == clean[5] == ANSWER
    for messages in ([USER | {key: "Hm."}, ANSWER], [USER, ANSWER | {key: ["Hm."]}]):
        with pytest.raises(
            BadRow, match=r"^f:1: thinking \(reasoning_content\) is a text, and in an assistant's message"
        ):
            checked_messages(messages, "f:1")


@pytest.mark.parametrize(
    ("results", "names", "contents"),
    [
        ([{"content": "1"}, {"content": "2"}], [None, None], ["1", "2"]),
        ([{"tool_call_id": "id_b", "content": "1"}, {"tool_call_id": "id_a", "content": "2"}], ["b", "a"], ["1", "2"]),
        ([{"name": "b", "content": "1"}, {"name": "a", "content": "2"}], ["b", "a"], ["1", "2"]),
        ([{"tool_call_id": "other", "name": "a", "content": "1"}], ["a"], ["1"]),
        ([{"tool_call_id": ["id_a"], "name": 3, "content": "1"}], [None], ["1"]),
        ([{"content": {"name": "a", "response": {"x": 1}}}], ["a"], [{"x": 1}]),
        ([{"content": [{"name": "b", "response": "1"}, {"name": "a", "response": [2]}]}], ["b", "a"], ["1", "[2]"]),
        ([{"content": {"x": 1}}], [None], [{"x": 1}]),
    ],
)
def test_results_are_named_where_the_row_names_them(results: Any, names: list[Any], contents: list[Any]) -> None:
    """By the call's id, by their own name, or in Google's form; ids are no part of the row afterwards."""
    clean = checked_messages([USER, calling("a", "b"), *({"role": "tool", **r} for r in results), ANSWER], "f:1")
    tools = [m for m in clean if m["role"] == "tool"]
    assert [m.get("name") for m in tools] == names
    assert [m["content"] for m in tools] == contents
    assert "id_" not in str(clean)
    assert Record("f:1", messages=clean).prompt == clean[:-1]


@pytest.mark.parametrize("name", ["gemma3", "functiongemma", "gemma4_v1", "gemma4_v2", "gemma4_v5"])
def test_a_row_of_each(name: str) -> None:
    """From the row to the text: results in another order than the calls, one of them data."""
    row = [
        {"role": "developer", "content": "Be brief."},
        USER,
        calling("a", "b"),
        {"role": "tool", "tool_call_id": "id_b", "content": "one"},
        {"role": "tool", "tool_call_id": "id_a", "content": {"x": [1, "y"]}},
        ANSWER,
    ]
    # The release's text of Gemma 4 writes each result as a turn, which is no order that rows are refused for
    text = tokenizer_of(name).decode(render_chat(tokenizer_of(name), checked_messages(row, "f:1")).input_ids)
    assert text.count("Be brief.") == 1
    own = {
        "functiongemma": ["response:b{value:<escape>one<escape>}", "response:a{x:[1,<escape>y<escape>]}"],
        "gemma4_v2": ["<|turn>tool\none<turn|>", '<|turn>tool\n{"x": [1, "y"]}<turn|>'],
        "gemma3": ["<tool_response>\none\n</tool_response>", '<tool_response>\n{"x": [1, "y"]}\n</tool_response>'],
    }
    first, second = own.get(name, ['response:b{value:<|"|>one<|"|>}', 'response:a{x:[1,<|"|>y<|"|>]}'])
    assert 0 < text.index(first) < text.index(second)
