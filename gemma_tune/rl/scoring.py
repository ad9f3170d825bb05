"""Runs rewards safely: each has a time limit, failures are counted, and the run ends if there are too many."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from gemma_tune.errors import RunError
from gemma_tune.rewards.base import Completion, Reward, Task
from gemma_tune.rl.own_rewards import TrlReward

_WINDOW = 256  # completions that the share of failures is computed over
_LARGEST = 3e38  # the largest float32
_LEAST = 16  # with fewer scored, only a reward that fails on a whole batch ends the run


class TooManyFailures(RunError):
    """A reward failed on more completions than allowed."""


class _TimeIsUp(BaseException):
    """Not an Exception, since a reward might catch every Exception and go on."""


@dataclass(frozen=True)
class WeightedReward:
    """A reward in the mixture.

    Attributes:
        name: Its name.
        reward: The reward function.
        weight: Its weight in the sum.
        limited: Whether `reward.timeout` applies: not to code, whose tests have their own limits, nor to models.
    """

    name: str
    reward: Reward
    weight: float
    limited: bool = True


@dataclass(frozen=True)
class Scores:
    """The scores of a batch.

    Attributes:
        values: By reward: one score per completion; None if the reward doesn't apply or failed.
        failed: By reward: the reason of each failure, by the completion's index.
    """

    values: dict[str, list[float | None]]
    failed: dict[str, dict[int, str]]

    def complete(self, place: int) -> bool:
        """Whether no reward failed on a completion; otherwise the sum of the others would pass for the sum of all."""
        return not any(place in reasons for reasons in self.failed.values())

    def share_failed(self, name: str) -> float:
        """Share of the completions that a reward failed on."""
        return len(self.failed[name]) / len(self.values[name])


class Scorer:
    """Scores completions by several rewards.

    Args:
        rewards: The rewards, with their weights.
        timeout: Seconds for a batch, and for one completion if the batch took longer.
        max_failure_share: Share of the last 256 completions; above it the run ends.
    """

    def __init__(self, rewards: Sequence[WeightedReward], timeout: float, max_failure_share: float) -> None:
        self.rewards = rewards
        self._timeout, self._most = timeout, max_failure_share
        self._recent: dict[str, deque[str | None]] = {r.name: deque(maxlen=_WINDOW) for r in rewards}

    @property
    def weights(self) -> dict[str, float]:
        """The weights by name."""
        return {r.name: r.weight for r in self.rewards}

    def attach(self, **trainer: Any) -> None:
        """Gives rewards with TRL's signature the arguments that belong to a trainer (`TrlReward.trainer`)."""
        for r in self.rewards:
            if isinstance(r.reward, TrlReward):
                r.reward.trainer = trainer

    def score(self, completions: Sequence[Completion], tasks: Sequence[Task]) -> Scores:
        """The scores of a batch.

        A reward that fails on the batch is called for each completion alone, so that only the failing ones are lost.

        Raises:
            TooManyFailures: A reward failed on more completions than allowed; the message names the first cause.
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
            raise self._too_many(r.name)  # it has scored nothing else yet
        return values, failed

    def _asked(
        self, r: WeightedReward, completions: Sequence[Completion], tasks: Sequence[Task]
    ) -> tuple[list[float | None], dict[int, str]]:
        """The scores, and the reason of each failure by index."""
        n = len(completions)
        try:
            with time_limit(self._timeout if r.limited else None):
                given = list(r.reward(completions, tasks))
        except _TimeIsUp:
            return [None] * n, dict.fromkeys(range(n), f"took longer than {self._timeout:g} s (reward.timeout)")
        except (Exception, SystemExit) as error:
            message = " ".join(str(error).split())[:300]
            at = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {message} ({at.filename}:{at.lineno})"
            return [None] * n, dict.fromkeys(range(n), reason)
        if len(given) != n:
            return [None] * n, dict.fromkeys(range(n), f"gave {len(given)} scores for {n} completions")
        values = [_number(value) for value in given]
        wrong = {i: f"gave {str(given[i])[:80]!r}, not a number" for i, v in enumerate(values) if v is None}
        failed = {i: reason for i, reason in wrong.items() if given[i] is not None}
        return [None if i in wrong else value for i, value in enumerate(values)], failed

    def _count(
        self, name: str, places: Sequence[int], failed: Mapping[int, str], tasks: Sequence[Task], left: int = 0
    ) -> None:
        """Counts failures; ends the run if there are too many even if the `left` remaining completions don't fail."""
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
    """The reward of one completion; None if no reward applies to it."""
    known = [weights[name] * value for name, value in values.items() if value is not None]
    return sum(known) if known else None


def _number(value: Any) -> float | None:
    """A finite number of any type (also NumPy scalars and tensors with one element), or None."""
    with contextlib.suppress(Exception):
        value = value.item() if hasattr(value, "item") and not isinstance(value, Real) else value
        if isinstance(value, Real) and abs(float(value)) <= _LARGEST:  # False for NaN
            return float(value)
    return None


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupts the block after some seconds. It needs the main thread and SIGALRM; elsewhere there is no limit.

    Python code is interrupted between two instructions, sleeping and waiting at once; a long computation of a C library
    only when it returns.
    """
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again and again, in case a bare `except:` caught it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
