"""What counts as right, and that the counting counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gemma_tune.chat import FORMS, served_template
from gemma_tune.data.records import Record
from gemma_tune.evals import exact_match as module
from gemma_tune.evals.exact_match import exact_match, is_right

TOOLS = [{"type": "function", "function": {"name": "set_timer", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "set_timer", "arguments": {"minutes": 5, "label": "tea"}}}
GOOD = '{"name": "set_timer", "parameters": {"label": "tea", "minutes": 5}}'


def row(answer: dict[str, Any], tools: list[dict[str, Any]] | None) -> Record:
    messages = [{"role": "user", "content": "Tea, 5 minutes"}, {"role": "assistant", **answer}]
    return Record("test:1", messages=messages, tools=tools)


CALLS = row({"content": "", "tool_calls": [CALL]}, TOOLS)
REFUSES = row({"content": "Sorry, none of my tools can do that."}, TOOLS)
WORDS = row({"content": "It is yellow."}, None)
PARTS = row({"content": [{"type": "text", "text": "It is"}, {"type": "text", "text": " yellow."}]}, None)
_RESULT = {"role": "tool", "content": "{}"}
AFTER_RESULT = Record(
    "test:2", messages=[*(CALLS.messages or []), _RESULT, {"role": "assistant", "content": "Done."}], tools=TOOLS
)


@pytest.mark.parametrize(
    ("record", "answer", "right"),
    [
        (CALLS, GOOD, True),
        (CALLS, f"[{GOOD}]", True),
        (CALLS, GOOD.replace("5", '"5"'), False),
        (CALLS, GOOD.replace("tea", "Tea"), False),
        (CALLS, GOOD.replace("set_timer", "timer"), False),
        (CALLS, f"[{GOOD}, {GOOD}]", False),
        (CALLS, GOOD[:-1], False),
        (CALLS, "Sorry, none of my tools can do that.", False),
        (REFUSES, "I can't do that.", True),
        (REFUSES, GOOD, False),
        (REFUSES, GOOD[:-1], False),
        (REFUSES, "", False),
        (CALLS, f"{GOOD}\n{GOOD}", False),
        (AFTER_RESULT, "Done.", True),
        (AFTER_RESULT, "Hm.", False),
        (AFTER_RESULT, GOOD, False),
        (PARTS, "It isyellow.", True),  # as the template renders it: each part trimmed
        (PARTS, "It is yellow.", False),
        (WORDS, " It is yellow.\n", True),
        (WORDS, "It is yellow", False),
    ],
)
def test_is_right(record: Record, answer: str, right: bool) -> None:
    assert is_right(record, answer) is right


NATIVE = '<|tool_call>call:set_timer{label:<|"|>tea<|"|>,minutes:5}<tool_call|>'


@pytest.mark.parametrize(
    ("record", "answer", "right"),
    [
        (CALLS, NATIVE, True),
        (CALLS, "<|channel>thought\nA timer.<channel|>" + NATIVE, True),
        (CALLS, NATIVE.replace("5", "5.5"), False),
        (CALLS, NATIVE.removesuffix("<tool_call|>"), False),
        (CALLS, GOOD, False),  # another form's call is none
        (REFUSES, "I can't do that.", True),
        (REFUSES, NATIVE, False),
        (REFUSES, NATIVE.removesuffix("<tool_call|>"), False),
        (WORDS, "<|channel>thought\nHm.<channel|>It is yellow.", True),
        (WORDS, "<|channel>thought\nIt is yellow.", False),  # it was only thought
        (PARTS, "It isyellow.", True),
    ],
)
def test_is_right_in_a_form_with_tokens_of_its_own(record: Record, answer: str, right: bool) -> None:
    """Calls are read from their tokens, and thinking doesn't count."""
    assert is_right(record, answer, FORMS["gemma4"]) is right


def test_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that was cut off isn't right, whatever it says."""
    said = [(GOOD, "yes"), (GOOD, "no"), ("Hm.", "yes"), ("It is yellow.", "yes")]

    def answers(*_: Any) -> list[dict[str, str]]:
        return [{"prompt": "", "wanted": "", "answer": answer, "stopped": stopped} for answer, stopped in said]

    monkeypatch.setattr(module, "sample_answers", answers)
    tokenizer = SimpleNamespace(chat_template=served_template())
    figures, rows = exact_match(None, tokenizer, [CALLS, CALLS, CALLS, WORDS], 64, 8, "mine")
    assert figures == {"mine_exact_match": 0.5, "mine_stopped": 0.75, "mine_rows": 4}
    assert [r["right"] for r in rows] == ["yes", "no", "no", "yes"]
