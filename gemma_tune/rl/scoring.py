"""Rewards under guard: each under a time limit, its failures counted, and the run ended where they are too many."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from gemma_tune.errors import RunError
from gemma_tune.rewards.base import Completion, Reward, Task

_WINDOW = 256  # completions that the share of failures is taken over
_LARGEST = 3e38  # of a float32
_LEAST = 16  # before so many were scored, only a reward that fails on a whole batch ends the run


class TooManyFailures(RunError):
    """A reward failed on more completions than it may."""


class _TimeIsUp(BaseException):
    """Not an Exception: a reward that catches every one would go on."""


@dataclass(frozen=True)
class WeightedReward:
    """A reward in the mixture.

    Attributes:
        name: Its name.
        reward: What scores.
        weight: Its weight in the sum.
        limited: Whether `reward.timeout` holds for it: not for code, whose tests have limits of their own, nor models.
    """

    name: str
    reward: Reward
    weight: float
    limited: bool = True


@dataclass(frozen=True)
class Scores:
    """The scores of a batch.

    Attributes:
        values: By reward: a score for each completion, or None where it says nothing of it, or failed.
        failed: By reward: why it failed, by the completion's place.
    """

    values: dict[str, list[float | None]]
    failed: dict[str, dict[int, str]]

    def complete(self, place: int) -> bool:
        """Whether no reward failed on a completion: else the sum of the others would stand for all."""
        return not any(place in reasons for reasons in self.failed.values())

    def share_failed(self, name: str) -> float:
        """Share of the completions that a reward failed on."""
        return len(self.failed[name]) / len(self.values[name])


class Scorer:
    """Scores completions by several rewards.

    Args:
        rewards: The rewards, with their weights.
        timeout: Seconds for a batch, and for one completion where the batch took longer.
        max_failure_share: Of the last 256 completions; above it the run ends.
    """

    def __init__(self, rewards: Sequence[WeightedReward], timeout: float, max_failure_share: float) -> None:
        self.rewards = rewards
        self._timeout, self._most = timeout, max_failure_share
        self._recent: dict[str, deque[str | None]] = {r.name: deque(maxlen=_WINDOW) for r in rewards}

    @property
    def weights(self) -> dict[str, float]:
        """The weights by name."""
        return {r.name: r.weight for r in self.rewards}

    def score(self, completions: Sequence[Completion], tasks: Sequence[Task]) -> Scores:
        """The scores of a batch.

        A reward that fails on the batch is asked for each completion alone, so that only those are lost that it fails
        on.

        Raises:
            TooManyFailures: A reward failed on more completions than it may; the message has the first cause.
        """
        scores = Scores({}, {})
        for r in self.rewards:
            values, failed = self._scored(r, completions, tasks)
            scores.values[r.name], scores.failed[r.name] = values, failed
        return scores

    def _scored(
        self, r: WeightedReward, completions: Sequence[Completion], tasks: Sequence[Task]
    ) -> tuple[list[float | None], dict[int, str]]:
        n = len(completions)
        values, failed = self._asked(r, completions, tasks)
        if len(failed) == n > 1:
            values, failed = [None] * n, {}
            for i in range(n):
                (values[i],), reasons = self._asked(r, completions[i : i + 1], tasks[i : i + 1])
                if reasons:
                    failed[i] = reasons[0]
                self._count(r.name, [i], failed, tasks, left=n - 1 - i)
        else:
            self._count(r.name, range(n), failed, tasks)
        if len(failed) == n > 1 and len(self._recent[r.name]) < _LEAST and self._most < 1:
            raise self._too_many(r.name)  # nothing else is known of it yet
        return values, failed

    def _asked(
        self, r: WeightedReward, completions: Sequence[Completion], tasks: Sequence[Task]
    ) -> tuple[list[float | None], dict[int, str]]:
        """The scores, and what is wrong with each that is none."""
        n = len(completions)
        try:
            with time_limit(self._timeout if r.limited else None):
                given = list(r.reward(completions, tasks))
        except _TimeIsUp:
            return [None] * n, dict.fromkeys(range(n), f"took longer than {self._timeout:g} s (reward.timeout)")
        except (Exception, SystemExit) as error:
            said = " ".join(str(error).split())[:300]
            return [None] * n, dict.fromkeys(range(n), f"{type(error).__name__}: {said}")
        if len(given) != n:
            return [None] * n, dict.fromkeys(range(n), f"gave {len(given)} scores for {n} completions")
        values = [_number(value) for value in given]
        wrong = {i: f"gave {str(given[i])[:80]!r}, no number" for i, v in enumerate(values) if v is None}
        failed = {i: reason for i, reason in wrong.items() if given[i] is not None}
        return [None if i in wrong else value for i, value in enumerate(values)], failed

    def _count(
        self, name: str, places: Sequence[int], failed: Mapping[int, str], tasks: Sequence[Task], left: int = 0
    ) -> None:
        """Counts completions, and ends the run where too many failed, even if the `left` ones of the batch don't."""
        recent = self._recent[name]
        recent.extend(f"{tasks[i].where}: {failed[i]}" if i in failed else None for i in places)
        total = min(_WINDOW, len(recent) + left)
        if total >= _LEAST and sum(r is not None for r in recent) / total > self._most:
            raise self._too_many(name)

    def _too_many(self, name: str) -> TooManyFailures:
        recent = self._recent[name]
        failures = [reason for reason in recent if reason is not None]
        return TooManyFailures(
            f"reward.{name} failed on {len(failures)} of the last {len(recent)} completions "
            f"({len(failures) / len(recent):.0%}; reward.max_failure_share={self._most:g}). The first: {failures[0]}"
        )


def weighted_sum(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The reward of one completion: None where no reward says anything of it."""
    known = [weights[name] * value for name, value in values.items() if value is not None]
    return sum(known) if known else None


def _number(value: Any) -> float | None:
    """A finite number of any type (NumPy's, a tensor of one), or None."""
    with contextlib.suppress(Exception):
        value = value.item() if hasattr(value, "item") and not isinstance(value, Real) else value
        if isinstance(value, Real) and abs(float(value)) <= _LARGEST:  # not where it is NaN
            return float(value)
    return None


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Breaks off what takes longer, on the main thread of a system with timers; elsewhere there is no limit.

    Python code is broken off between two instructions, and sleeping or waiting at once; a library's long computation
    in C only when it returns.
    """
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def up(number: int, frame: Any) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # once more, where a bare `except:` has caught it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
