"""What a run gives back. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_tune.untrusted import read_object

_AT_STEP = re.compile(r"step (\d+): ")


def failures_until(step: int, result: Path) -> dict[str, str]:
    """What could not be measured at the steps that a run doesn't repeat which goes on from a step.

    Args:
        step: Optimizer steps done.
        result: The interrupted run's result.json; a damaged one has none.
    """
    try:
        failures = read_object(result).get("failures", {}).items()
        found = ((_AT_STEP.match(where), where, str(reason)) for where, reason in failures)
        return {where: reason for at, where, reason in found if at and int(at[1]) <= step}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@dataclass
class RunResult:
    """What a run gives back; the same as `result.json`.

    Attributes:
        recipe: Name of the recipe.
        status: running, finished, interrupted, failed, submitted (to a cluster), or dry_run.
        reason: Why it failed; else None.
        headline: The recipe's first figure: `name`, `before`, `after`.
        metrics: Every other figure, by name.
        artifacts: What can be taken away: name → path relative to the run folder.
        seconds: Wall seconds of each step.
        failures: What could not be measured, by when and by what (`after: lm_eval`); the command ends with status 1.
        peak_memory_mb: MiB: the GPU's peak allocation, or the process's largest resident size without one.
        folder: The run folder.
    """

    recipe: str
    status: str = "running"
    headline: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    reason: str | None = None
    folder: Path | None = None

    def take(self, name: str, stage: RunResult) -> None:
        """Adds what a stage, a run of its own in the folder `name`, has left and measured."""
        self.artifacts |= {f"{name}/{key}": f"{name}/{path}" for key, path in stage.artifacts.items()}
        self.metrics[name] = stage.metrics
        self.failures |= {f"{name}: {where}": reason for where, reason in stage.failures.items()}
        self.peak_memory_mb = max(self.peak_memory_mb or 0.0, stage.peak_memory_mb or 0.0)

    @property
    def headline_after(self) -> float | None:
        """The headline figure after training, which sweepers optimise."""
        return self.headline.get("after")
