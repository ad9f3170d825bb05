"""The warning of a reward that rises while held-out accuracy falls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.rl.reward_hacking import RewardHackingMonitor


def measured(right: int) -> Evaluation:
    rows = [{"id": str(i), "score": float(i < right)} for i in range(100)]
    return Evaluation({"test_math": right / 100}, {"test_math": rows})


def watched(rewards: list[float], before: Evaluation) -> RewardHackingMonitor:
    watch = RewardHackingMonitor(before)
    watch.on_train_begin(None, SimpleNamespace(log_history=[{"reward": rewards[0]}]), None)  # resumed after a step
    for reward in rewards[1:]:
        watch.on_log(None, None, None, logs={"reward": reward})
    return watch


RISING, FALLING = [0.1 * i for i in range(10)], [1 - 0.1 * i for i in range(10)]


def test_it_warns_where_what_is_rewarded_is_not_what_is_wanted() -> None:
    (line,) = watched(RISING, measured(60)).warnings(measured(40))
    assert "test_math" in line and "60.0%" in line and "40.0%" in line and "completions.jsonl" in line


@pytest.mark.parametrize(
    ("rewards", "before", "after"),
    [(RISING, 60, 80), (RISING, 60, 58), (FALLING, 60, 40), (RISING, 60, 60)],
    ids=["both rise", "within chance", "both fall", "the same"],
)
def test_it_is_silent_else(rewards: list[float], before: int, after: int) -> None:
    assert not watched(rewards, measured(before)).warnings(measured(after))


def test_nothing_was_measured_before() -> None:
    assert not watched(RISING, Evaluation()).warnings(measured(40))


def test_the_first_and_the_last_fifth() -> None:
    assert watched(RISING, measured(1)).figures == pytest.approx({"reward_first": 0.05, "reward_last": 0.85})
