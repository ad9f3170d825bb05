"""When words are the row's."""

from __future__ import annotations

import pytest

from gemma_tune.config.reward import ExactReward
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.exact import prepare


@pytest.mark.parametrize(
    ("said", "ignore_case", "right"),
    [
        ("It is yellow.", False, True),
        ("  It is\n\n yellow.\t", False, True),
        ("It is\N{NO-BREAK SPACE}yellow.", False, True),
        ("it is Yellow.", False, False),
        ("it is Yellow.", True, True),
        ("Itis yellow.", False, False),
        ("It is yellow", False, False),
        ("It is yellow. Or red.", False, False),
        ("", False, False),
        ("It is yellow.\0", False, False),
        ("It is yellow.\ud800", True, False),
    ],
)
def test_words_are_compared_and_blanks_are_not(said: str, ignore_case: bool, right: bool) -> None:
    reward = prepare(ExactReward(ignore_case=ignore_case))
    assert reward([Completion(said)], [Task("rows.jsonl:1", answer="It is  yellow.\n")]) == [float(right)]


def test_only_the_text_counts_and_only_whole() -> None:
    reward, task = prepare(ExactReward()), Task("rows.jsonl:1", answer="Yes")
    said = [Completion("<think>No</think>Yes", text="Yes", thinking="No"), Completion("Yes", stopped=False)]
    assert reward(said, [task, task]) == [1.0, 0.0]


def test_row_without_an_answer_is_named() -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl:7: the row has no answer"):
        prepare(ExactReward())([Completion("Yes")], [Task("rows.jsonl:7", answer=" ")])
