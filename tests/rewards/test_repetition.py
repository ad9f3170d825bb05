"""The share of repeated n-grams, held against a count by hand."""

from __future__ import annotations

import pytest

from gemma_tune.config.reward import RepetitionReward
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.repetition import prepare


def score(said: Completion, size: int = 3) -> float | None:
    return prepare(RepetitionReward(ngram_size=size))([said], [Task("rows.jsonl:1")])[0]


@pytest.mark.parametrize(
    ("said", "size", "wanted"),
    [
        ("", 3, 0.0),
        ("one two", 3, 0.0),
        ("one two three", 3, 0.0),
        ("a b c a b c", 3, -1 / 4),  # abc bca cab abc
        ("a a a a a a", 3, -3 / 4),
        ("A a A a A a", 3, -3 / 4),
        ("a b a b", 1, -2 / 4),
        ("a b a b", 2, -1 / 3),
        ("a b c d", 1, 0.0),
        ("今天今天", 2, -1 / 3),
        ("\ud800 \0 \ud800 \0", 2, -1 / 3),
    ],
)
def test_share_of_repeated_ngrams(said: str, size: int, wanted: float) -> None:
    assert score(Completion(said), size) == pytest.approx(wanted)


def test_a_loop_comes_near_minus_one() -> None:
    assert score(Completion("I think so. " * 10_000)) == pytest.approx(-1.0, abs=1e-3)


def test_loop_of_thoughts_counts_and_saying_a_thought_again_does_not() -> None:
    assert score(Completion("", text="", thinking="a a a a a a")) == pytest.approx(-3 / 4)
    assert score(Completion("", text="a b c d", thinking="a b c d")) == 0.0
