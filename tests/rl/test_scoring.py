"""Rewards under guard: failures are counted and named, and too many end the run."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gemma_tune.rewards.base import Completion, Task, per_completion
from gemma_tune.rl.scoring import Scorer, TooManyFailures, WeightedReward, weighted_sum

TASKS = [Task(f"rows.jsonl:{i + 1}", row={"n": i}) for i in range(20)]
SAID = [Completion(str(i)) for i in range(20)]


def scorer(reward: Any, share: float = 0.1, timeout: float = 5.0, **more: Any) -> Scorer:
    return Scorer([WeightedReward("mine", reward, 1.0, **more)], timeout, share)


def on_row(place: int, what: Callable[[], Any]) -> Any:
    """A reward that does something on one row, and scores the others 1."""
    return per_completion(lambda c, r: what() if r.row["n"] == place else 1.0)


def fail() -> float:
    raise ZeroDivisionError("division by zero")


def hang() -> float:
    while True:
        pass


def stubborn() -> float:
    """Catches every exception, as careless rewards do."""
    while True:
        with contextlib.suppress(Exception):
            time.sleep(10)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (fail, f"ZeroDivisionError: division by zero ({__file__}:"),
        (hang, "took longer than 0.2 s"),
        (stubborn, "took longer than 0.2 s"),
        (lambda: math.nan, "gave 'nan', not a number"),
        (lambda: math.inf, "gave 'inf', not a number"),
        (lambda: 10**400, "gave '1000"),
        (lambda: 1e39, "gave '1e+39', not a number"),
        (lambda: "1", "gave '1', not a number"),
        (lambda: [1.0], "gave '[1.0]', not a number"),
        (sys.exit, "SystemExit"),
    ],
)
def test_only_the_row_is_lost(what: Callable[[], Any], reason: str) -> None:
    scores = scorer(on_row(3, what), timeout=0.2).score(SAID, TASKS)
    assert list(scores.failed["mine"]) == [3] and reason in scores.failed["mine"][3]
    assert scores.values["mine"] == [None if i == 3 else 1.0 for i in range(20)]
    assert not scores.complete(3) and scores.complete(4)
    assert scores.share_failed("mine") == 1 / 20


def test_above_the_share_the_run_ends_with_reward_row_and_cause() -> None:
    reward = per_completion(lambda c, r: fail() if r.row["n"] % 4 == 1 else 1.0)
    with pytest.raises(TooManyFailures, match=r"reward\.mine failed on .*The first: rows\.jsonl:2: ZeroDivisionError"):
        scorer(reward).score(SAID, TASKS)
    assert scorer(reward, share=0.5).score(SAID, TASKS).share_failed("mine") == 5 / 20


def test_failures_are_remembered_over_batches() -> None:
    mine = scorer(on_row(0, fail), share=0.2)
    for _ in range(4):  # 1 of 5 each time: exactly the share
        mine.score(SAID[:5], TASKS[:5])
    with pytest.raises(TooManyFailures):
        mine.score(SAID[:1] * 2, TASKS[:1] * 2)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda c, r: [1.0] * (len(c) + 1), "gave 2 scores"),
        (lambda c, r: None, "TypeError"),
        (lambda c: [1.0], "TypeError"),
    ],
)
def test_what_fails_on_all_ends_at_once(reward: Any, said: str) -> None:
    with pytest.raises(TooManyFailures, match=said):
        scorer(reward).score(SAID[:8], TASKS[:8])
    assert scorer(reward, share=1.0).score(SAID, TASKS).share_failed("mine") == 1


def test_one_bad_row_among_many_does_not_end_the_run() -> None:
    """All completions of its group fail; of wide models a batch is one group."""
    mine = scorer(on_row(7, fail))
    for i in (*range(7), *range(8, 16)):
        mine.score([SAID[i]] * 8, [TASKS[i]] * 8)
    assert mine.score([SAID[7]] * 8, [TASKS[7]] * 8).share_failed("mine") == 1


def test_none_is_no_failure() -> None:
    scores = scorer(lambda c, r: [None] * len(c), share=0.0).score(SAID, TASKS)
    assert scores.values["mine"] == [None] * 20 and not scores.failed["mine"]


def test_numbers_of_any_type() -> None:
    given = [1, True, np.float32(0.5), np.int64(2), torch.tensor(0.25)]
    assert scorer(lambda c, r: given).score(SAID[:5], TASKS[:5]).values["mine"] == [1.0, 1.0, 0.5, 2.0, 0.25]


def test_a_reward_with_limits_of_its_own_has_no_other() -> None:
    def slow(completions: Sequence[Completion], records: Sequence[Task]) -> list[float]:
        time.sleep(0.3)
        return [1.0] * len(completions)

    assert scorer(slow, timeout=0.1, limited=False).score(SAID, TASKS).values["mine"] == [1.0] * 20


def test_outside_of_the_main_thread_there_is_no_limit_and_no_crash() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(scorer(on_row(-1, fail)).score(SAID, TASKS)))
    thread.start()
    thread.join()
    assert found[0].values["mine"] == [1.0] * 20


def test_the_weighted_sum() -> None:
    weights = {"a": 1.0, "b": 0.2}
    assert weighted_sum({"a": 1.0, "b": 1.0}, weights) == pytest.approx(1.2)
    assert weighted_sum({"a": None, "b": 1.0}, weights) == pytest.approx(0.2)
    assert weighted_sum({"a": None, "b": None}, weights) is None
