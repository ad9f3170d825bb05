"""Several sets as one: whose row comes next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def interleave(
    sets: Sequence[Callable[[], Iterator[T]]], weights: Sequence[float], stopping_strategy: str = "first_exhausted"
) -> Iterator[T]:
    """Takes from each set in proportion to its weight: at every point each set is about a row from its share.

    Drawn by chance (as `datasets.interleave_datasets` does) the shares of 10,000 rows would be off by up to 2 %.

    Args:
        sets: Each gives its rows from the beginning.
        weights: Of the sets; above 0.
        stopping_strategy: `first_exhausted`: the first set without a row left ends it; `all_exhausted`: every set is
            read to its end, and the others are begun again until then. Names of `datasets.interleave_datasets`.
    """
    all_exhausted = stopping_strategy == "all_exhausted"
    total, taken = sum(weights), [0] * len(sets)
    readers, whole = [make() for make in sets], [False] * len(sets)
    while True:
        n = sum(taken) + 1
        i = max(range(len(sets)), key=lambda i: weights[i] / total * n - taken[i])
        row = next(readers[i], None)
        if row is None:
            whole[i] = True
            if all(whole) or not all_exhausted:
                return
            readers[i] = sets[i]()
            continue
        taken[i] += 1
        yield row
