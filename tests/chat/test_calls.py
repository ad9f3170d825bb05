"""Calls in what a model said: found, compared as data, shown."""

from __future__ import annotations

import pytest

from gemma_tune.chat.calls import Call, as_message, calls_of, parse_answer, same_calls, same_data, shown

LIGHT = Call("set_light", {"room": "kitchen", "on": False})
TIMER = Call("set_timer", {"minutes": 5})
LIGHT_TEXT = '{"name": "set_light", "parameters": {"room": "kitchen", "on": false}}'
TIMER_TEXT = '{"name": "set_timer", "parameters": {"minutes": 5}}'


@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        (LIGHT_TEXT, "", [LIGHT]),
        (f"[{LIGHT_TEXT}, {TIMER_TEXT}]", "", [LIGHT, TIMER]),
        (f"I do that.\n{LIGHT_TEXT}", "I do that.", [LIGHT]),
        (f"```json\n{LIGHT_TEXT}\n```", "", [LIGHT]),
        (f"Yes:\n```tool_code\n[{TIMER_TEXT}]\n```\nDone.", "Yes:\nDone.", [TIMER]),
        (f'{{"a": 1}} and {TIMER_TEXT}', '{"a": 1} and', [TIMER]),
        ("Sorry, none of my tools can do that.", "Sorry, none of my tools can do that.", []),
        (LIGHT_TEXT[:-1], LIGHT_TEXT[:-1], []),  # cut off: no call was made
        ('{"name": "x", "fields": {}}', '{"name": "x", "fields": {}}', []),
        ('{"name": "x", "parameters": [1]}', '{"name": "x", "parameters": [1]}', []),
        ('{"name": 3, "parameters": {}}', '{"name": 3, "parameters": {}}', []),
        (f"{LIGHT_TEXT}\n{TIMER_TEXT}", "", [LIGHT, TIMER]),
        (f"First {LIGHT_TEXT} and then {TIMER_TEXT}.", "First\nand then\n.", [LIGHT, TIMER]),
        ("[" * 5000, "[" * 5000, []),
        ("[]", "[]", []),
        ("", "", []),
    ],
)
def test_parse(answer: str, text: str, calls: list[Call]) -> None:
    assert parse_answer(answer) == (text, calls)


def test_what_is_inside_other_json_is_no_call() -> None:
    """A record that happens to hold a call's shape was not meant as one."""
    assert parse_answer(f'{{"form": "x", "fields": {LIGHT_TEXT}}}')[1] == []


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (20, 20.0, True), (True, 1, False), (0, False, False), ("5", 5, False), (None, None, True), (None, 0, False),
        ({"a": 1, "b": [1, {"c": 2}]}, {"b": [1.0, {"c": 2}], "a": 1}, True), ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ({"a": 1}, {"a": 1, "b": None}, False), ("Kitchen", "kitchen", False), ([True], [1], False),
    ],
)  # fmt: skip
def test_same_data(a: object, b: object, same: bool) -> None:
    assert same_data(a, b) is same
    assert same_data(b, a) is same


@pytest.mark.parametrize(
    ("made", "wanted", "same"),
    [
        ([LIGHT], [LIGHT], True), ([LIGHT, TIMER], [TIMER, LIGHT], True), ([], [], True), ([LIGHT], [], False),
        ([], [LIGHT], False), ([LIGHT, LIGHT], [LIGHT], False), ([LIGHT], [LIGHT, LIGHT], False),
        ([Call("set_lights", LIGHT.arguments)], [LIGHT], False), ([Call("set_timer",
        {"minutes": "5"})], [TIMER], False),
        ([Call("set_timer", {"minutes": 5, "label": "tea"})], [TIMER], False), ([Call("set_timer",
        {})], [TIMER], False),
    ],
)  # fmt: skip
def test_same_calls(made: list[Call], wanted: list[Call], same: bool) -> None:
    assert same_calls(made, wanted) is same


def test_true_is_not_one_among_several() -> None:
    one, true = Call("f", {"x": 1}), Call("f", {"x": True})
    assert same_calls([one, true], [true, one])
    assert not same_calls([one, one], [true, one])


def test_there_and_back() -> None:
    message = as_message(f"Well.\n[{LIGHT_TEXT}, {TIMER_TEXT}]")
    assert message["content"] == "Well."
    assert calls_of(message) == [LIGHT, TIMER]
    assert as_message("Hello.") == {"role": "assistant", "content": "Hello."}
    assert calls_of({"role": "assistant", "content": "Hello."}) == []


def test_shown() -> None:
    assert shown(f"Well.\n{LIGHT_TEXT}") == 'Well.\n→ set_light(room="kitchen", on=false)'
    assert shown("Hello.") == "Hello."
    assert str(Call("send", {"text": "größer, „ja“"})) == 'send(text="größer, „ja“")'
