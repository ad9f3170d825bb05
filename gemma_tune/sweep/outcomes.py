"""What became of each job of a sweep, from its result and what its run folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from gemma_tune.errors import UserError, shortened
from gemma_tune.run.result import RunResult

FINISHED, FAILED, INTERRUPTED, WAITING = "finished", "failed", "interrupted", "not run yet"
_REASON = 300  # characters
# What a training without evaluation before has as its headline; and what ranks behind tests
_TRAIN_LOSS, _HELD_OUT_LOSS = "train_loss", "held_out_loss"


@dataclass(frozen=True)
class JobOutcome:
    """One job of a sweep.

    Attributes:
        name: What differs from the other jobs, as a name.
        setting: The same without the seed.
        differs: The swept keys and groups, each with its value.
        folder: Its run folder.
        status: `finished`, `failed`, `interrupted` or `not run yet`.
        reason: Why it failed: the first line of its message; else empty.
        headline: The name of its recipe's first figure; None where it has none.
        figures: What was measured at its end, by name.
        rows: The rows behind the figures that have some, each with an id and a score.
        lower_is_better: The figures where lower is better, beside those whose name says so.
    """

    name: str
    setting: str
    differs: Mapping[str, Any]
    folder: Path | None
    status: str = WAITING
    reason: str = ""
    headline: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, Any] = field(default_factory=dict)
    lower_is_better: tuple[str, ...] = ()

    def ended(self, result: RunResult) -> JobOutcome:
        """The same with what the run gave back, and with the rows in its folder."""
        from gemma_tune.compare.stored import results_file, stored_results

        if result.status == "submitted":  # to a cluster, which runs it some time
            return self
        status = FINISHED if result.status == FINISHED else INTERRUPTED
        figures = _numbers(result.metrics.get("after"))
        rows: Mapping[str, Any] = {}
        lower: tuple[str, ...] = ()
        if status == FINISHED and result.folder and results_file(str(result.folder)).is_file():
            try:
                stored = stored_results(self.name, str(result.folder))
                rows, lower = stored.scores, tuple(stored.lower_is_better)
            except UserError:  # a damaged file: the figures of the result are whole
                pass
        head: Mapping[str, Any] = result.headline
        name, after = head.get("name"), head.get("after")
        if name == _TRAIN_LOSS and (measured := _first_measured(rows)):
            name = measured  # the loss of the last batch stood in for what wasn't measured before training
        elif name and _is_number(after):
            figures = {name: after, **figures}
        reason = "; ".join(f"{what} not measured: {why}" for what, why in result.failures.items())
        return replace(
            self, status=status, reason=_first_line(reason), headline=name, figures=figures, rows=rows,
            lower_is_better=lower,
        )  # fmt: skip

    def failed(self, message: str) -> JobOutcome:
        """The same after an error."""
        return replace(self, status=FAILED, reason=_first_line(message) or "no message")

    def as_tree(self) -> dict[str, Any]:
        """What `sweep.json` has of it."""
        return {
            "name": self.name,
            "differs": dict(self.differs),
            "folder": None if self.folder is None else str(self.folder),
            "status": self.status,
            "reason": self.reason,
            "figures": dict(self.figures),
        }


def _first_measured(rows: Mapping[str, Any]) -> str | None:
    """The figure to look at first: that of the first test, else the held-out loss."""
    tests = [name for name in rows if name != _HELD_OUT_LOSS]
    return next(iter([*tests, *rows]), None)


def _first_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return shortened(lines[0], _REASON) if lines else ""


def _numbers(figures: Any) -> dict[str, float]:
    return {k: v for k, v in figures.items() if _is_number(v)} if isinstance(figures, Mapping) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
