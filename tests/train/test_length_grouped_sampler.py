"""Batches of rows of like length: every row once, little padding, an order that can be repeated."""

from __future__ import annotations

import itertools
import random

import pytest

from gemma_tune.train.length_grouped_sampler import LengthGroups


def _padding(lengths: list[int], order: list[int], size: int) -> float:
    batches = [[lengths[i] for i in order[n : n + size]] for n in range(0, len(order), size)]
    padded = sum(max(b) * len(b) for b in batches)
    return 1 - sum(lengths) / padded


@pytest.mark.parametrize("rows", [1, 3, 4, 32, 33, 1350])
def test_every_row_once(rows: int) -> None:
    rng = random.Random(rows)
    lengths = [rng.randint(200, 550) for _ in range(rows)]
    sampler = LengthGroups(lengths, 4, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(rows)) and len(sampler) == rows
    if rows > 100:
        assert _padding(lengths, order, 4) < 0.05 < _padding(lengths, list(range(rows)), 4)


def test_order() -> None:
    """The same for the same seed and epoch; another one in the next epoch; not from long to short."""
    lengths = [random.Random(i).randint(1, 999) for i in range(400)]
    first, again, other = LengthGroups(lengths, 4, 7), LengthGroups(lengths, 4, 7), LengthGroups(lengths, 4, 8)
    orders = list(first)
    assert orders == list(first) == list(again) != list(other)
    first.set_epoch(1)
    assert list(first) != orders
    tops = [lengths[orders[n]] for n in range(0, 400, 4)]
    falls = sum(a >= b for a, b in itertools.pairwise(tops))
    assert 35 < falls < 65
