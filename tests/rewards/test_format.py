"""Which completions have a form."""

from __future__ import annotations

from typing import Any

import pytest

from gemma_tune.config.reward import FormatReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.format import prepare


def score(said: Completion, **options: Any) -> Any:
    return prepare(FormatReward(**options))([said], [Task("rows.jsonl:1")])[0]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("<think>a</think><answer>b</answer>", True),
        (" \n<think>\na\n</think>\n\n<answer> b </answer>\n", True),
        ("<think>1 < 2 and <b>bold</b></think><answer>b</answer>", True),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a</think>", False),
        ("<answer>b</answer>", False),
        ("<think>a</think><answer>b", False),
        ("<think>a<answer>b</answer></think>", False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", False),
        ("<think>a</think><think>a</think><answer>b</answer>", False),
        ("<think>a</think>so<answer>b</answer>", False),
        ("So: <think>a</think><answer>b</answer>", False),
        ("<think>a</think><answer>b</answer>.", False),
        ("<think></think><answer>b</answer>", False),
        ("<think>a</think><answer> \n</answer>", False),
        ("<think>a</think><answer>\N{ZERO WIDTH SPACE}\0\ud800</answer>", False),
        ("<think>a<think>a</think><answer>b</answer>", False),
        ("<think>a</think><answer>b</answer></answer>", False),
        ("<Think>a</Think><answer>b</answer>", False),
        ("", False),
        ("<think>" * 50_000, False),
    ],
)
def test_tags_stand_in_their_order_once_and_alone(said: str, right: bool) -> None:
    assert score(Completion(said)) == float(right)


def test_tags_of_the_options() -> None:
    assert score(Completion("<a>1</a> <b>2</b> <c>3</c>"), tags=["a", "b", "c"]) == 1.0
    assert score(Completion("<a>1</a> <b>2</b> <c>3</c>"), tags=["a", "c", "b"]) == 0.0


@pytest.mark.parametrize(
    ("thinking", "text", "right"),
    [("Hm.", "Yes.", True), ("", "Yes.", False), ("Hm.", "", False), (" \n", "Yes.", False), ("Hm.", " ", False)],
)
def test_thinking_and_an_answer(thinking: str, text: str, right: bool) -> None:
    assert score(Completion(thinking + text, text=text, thinking=thinking), form="thinking") == float(right)


@pytest.mark.parametrize(
    ("said", "right"), [("Answer: 5", True), ("Answer: 5\n6", True), ("My answer: 5", False), ("Answer: ", False)]
)
def test_pattern_matches_all_of_the_text(said: str, right: bool) -> None:
    assert score(Completion(said), form="regex", regex=r"Answer: .+") == float(right)


def test_pattern_sees_no_thinking() -> None:
    assert score(Completion("Hm.5", text="5", thinking="Hm."), form="regex", regex=r"\d") == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "regex"}, "regex is not set"),
        ({"form": "regex", "regex": "(a"}, r"'\(a' is not a regular expression"),
        ({"form": "regex", "regex": "a{99999999999999}"}, "is not a regular expression"),
        ({"tags": []}, "tags is empty"),
        ({"tags": ["<think>"]}, "without < and >"),
        ({"tags": ["think", "think"]}, "listed twice"),
        ({"form": "xml"}, "no such form"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(FormatReward(**options))
