"""Mixes several data sets: decides which set gives the next row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def interleave(
    sets: Sequence[Callable[[], Iterator[T]]], weights: Sequence[float], stopping_strategy: str = "first_exhausted"
) -> Iterator[T]:
    """Takes rows from each set in proportion to its weight; no set is ever more than about one row off its share.

    Random draws, as in `datasets.interleave_datasets`, miss the shares of 10,000 rows by up to 2 %.

    Args:
        sets: Each starts its set from the beginning.
        weights: One for each set, above 0.
        stopping_strategy: `first_exhausted`: stop when the first set has no row left; `all_exhausted`: stop when every
            set was read to its end, and restart the shorter ones until then. Names of `datasets.interleave_datasets`.
    """
    all_exhausted = stopping_strategy == "all_exhausted"
    total, taken = sum(weights), [0] * len(sets)
    readers, exhausted = [make() for make in sets], [False] * len(sets)
    while True:
        n = sum(taken) + 1
        i = max(range(len(sets)), key=lambda i: weights[i] / total * n - taken[i])
        row = next(readers[i], None)
        if row is None:
            exhausted[i] = True
            if all(exhausted) or not all_exhausted:
                return
            readers[i] = sets[i]()
            continue
        taken[i] += 1
        yield row
