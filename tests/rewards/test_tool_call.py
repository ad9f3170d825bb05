"""When calls are the row's, and what a part of them earns."""

from __future__ import annotations

from typing import Any

import pytest

from gemma_tune.config.reward import ToolCallReward
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.tool_call import Call, prepare

TIMER = ("set_timer", {"minutes": 20, "label": "tea", "loud": True, "at": [{"day": 1, "hour": 2}]})
LIGHT = ("light", {})


def score(made: list[Call], wanted: list[Call], partial: bool = False, **said: Any) -> float | None:
    completion = Completion(said.pop("said", ""), calls=made, **said)
    return prepare(ToolCallReward(partial=partial))([completion], [Task("rows.jsonl:1", calls=wanted)])[0]


def changed(**arguments: Any) -> Call:
    return (TIMER[0], TIMER[1] | arguments)


@pytest.mark.parametrize(
    ("made", "right"),
    [
        ([TIMER, LIGHT], True),
        ([LIGHT, TIMER], True),
        ([LIGHT, changed(minutes=20.0)], True),
        ([LIGHT, (TIMER[0], dict(reversed(TIMER[1].items())))], True),
        ([LIGHT, changed(at=[{"hour": 2.0, "day": 1}])], True),
        ([LIGHT, changed(minutes="20")], False),
        ([LIGHT, changed(loud=1)], False),
        ([LIGHT, changed(at=[{"day": True, "hour": 2}])], False),
        ([LIGHT, changed(at=[])], False),
        ([LIGHT, changed(label="Tea")], False),
        ([LIGHT, changed(more=None)], False),
        ([LIGHT, ("timer", TIMER[1])], False),
        ([TIMER], False),
        ([TIMER, LIGHT, LIGHT], False),
        ([TIMER, TIMER], False),
        ([], False),
    ],
)
def test_calls_are_compared_as_data(made: list[Call], right: bool) -> None:
    assert score(made, [TIMER, LIGHT]) == float(right)
    assert (score(made, [TIMER, LIGHT], partial=True) == 1.0) == right


@pytest.mark.parametrize(
    ("made", "wanted", "earned"),
    [
        ([changed(minutes=5)], [TIMER], 0.5 + 0.5 * 3 / 4),
        ([changed(more=1)], [TIMER], 0.5 + 0.5 * 4 / 5),
        ([(TIMER[0], {})], [TIMER], 0.5),
        ([("timer", TIMER[1])], [TIMER], 0.0),
        ([TIMER], [TIMER, LIGHT], 0.5),
        ([TIMER, LIGHT, LIGHT], [TIMER, LIGHT], 2 / 3),
        ([(TIMER[0], {}), TIMER], [TIMER, TIMER], 0.75),
        ([], [TIMER], 0.0),
        ([changed(minutes=n) for n in range(100)], [TIMER], 1 / 100),
    ],
)
def test_a_part_earns_a_part(made: list[Call], wanted: list[Call], earned: float) -> None:
    assert score(made, wanted, partial=True) == pytest.approx(earned)
    assert score(made, wanted) == 0.0


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("None of my tools can do that.", True),
        ("", False),
        (" \n", False),
        ('{"name": "light", "parameters": {', False),
        ("[light(", False),
        ("Hm. <start_function_call>call:light{", False),
        ("Hm. <|tool_call>call:light{", False),
    ],
)
def test_where_no_call_is_wanted_words_are(said: str, right: bool) -> None:
    assert score([], [], said=said) == float(right)
    assert score([LIGHT], [], said=said) == 0.0


@pytest.mark.parametrize("partial", [False, True])
def test_what_was_cut_off_earns_nothing(partial: bool) -> None:
    assert score([TIMER], [TIMER], partial, stopped=False) == 0.0
    assert score([], [], partial, stopped=False, said="I can't.") == 0.0


def test_deep_and_odd_arguments_are_wrong() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    wanted = changed(at=deep)
    assert score([changed(at=deep)], [TIMER]) == 0.0
    assert score([wanted], [changed(at=[[1]])]) == 0.0
    assert score([changed(minutes=float("nan"))], [changed(minutes=float("inf"))]) == 0.0
    assert score([("set_timer", None)], [TIMER]) == 0.0  # type: ignore[list-item]
