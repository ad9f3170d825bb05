"""Runs of one setting with several seeds: their mean, and how far the seeds lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SeedSpread:
    """One figure over the seeds of a setting.

    Attributes:
        count: Seeds.
        mean: The mean of the runs' figures; each run counts the same.
        deviation: The sample standard deviation over the seeds (n - 1 in the denominator); None of one seed.
        low: The lowest run.
        high: The highest run.
    """

    count: int
    mean: float
    deviation: float | None
    low: float
    high: float


@dataclass(frozen=True)
class SeedGroup:
    """The runs of a setting.

    Attributes:
        setting: What it is called.
        runs: The names of its runs.
        figures: What they have in common, by name.
    """

    setting: str
    runs: Sequence[str]
    figures: Mapping[str, SeedSpread]


def seed_spread(values: Sequence[float]) -> SeedSpread:
    """Mean and spread of one value or more."""
    found = np.asarray(values, dtype=np.float64)
    deviation = float(found.std(ddof=1)) if len(found) > 1 else None
    return SeedSpread(len(found), float(found.mean()), deviation, float(found.min()), float(found.max()))


def seed_groups(runs: Sequence[tuple[str, str, Mapping[str, float]]]) -> list[SeedGroup]:
    """The runs by their settings, in the order of their first run.

    Args:
        runs: Name, setting and figures of each.
    """
    by_setting: dict[str, list[tuple[str, Mapping[str, float]]]] = {}
    for name, setting, figures in runs:
        by_setting.setdefault(setting, []).append((name, figures))
    return [
        SeedGroup(
            setting,
            [name for name, _ in members],
            {
                figure: seed_spread([figures[figure] for _, figures in members])
                for figure in members[0][1]
                if all(figures.get(figure) is not None for _, figures in members)
            },
        )
        for setting, members in by_setting.items()
    ]
