"""Lengths of rows: percentiles, a histogram, and the share of padding for each way of batching."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gemma_tune.config import Config
from gemma_tune.page.histogram import Histogram
from gemma_tune.train.length_grouped_sampler import LengthGroups

Lengths = NDArray[np.int64]

_BARS = 60


def nice_step(span: float, parts: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, … that cuts `span` into at most so many parts."""
    step = 1
    while span / step > parts:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return step


def histogram(lengths: Lengths, max_length: int) -> Histogram:
    """The histogram of row lengths.

    A few very long rows are counted apart, as they would compress all other bars; so would a `max_length` far beyond.

    Args:
        lengths: Tokens of each row, [N].
        max_length: Where rows are cut; the histogram reaches it unless it lies far beyond.
    """
    longest, most = int(lengths.max()), float(np.percentile(lengths, 95))
    end = longest if longest <= 2.5 * most else int(1.5 * most)
    if end < max_length <= 2.5 * end:
        end = max_length
    width = nice_step(end + 1, _BARS)
    bars = end // width + 1
    counted = np.bincount(np.minimum(lengths // width, bars), minlength=bars + 1)
    return Histogram(width, counted[:bars].tolist(), int(counted[bars]))


def percentiles(lengths: Lengths) -> dict[str, int]:
    """The median, the 95th percentile and the maximum; each is the length of a row."""
    median, most = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return {"median": int(median), "95 %": int(most), "longest": int(lengths.max())}


@dataclass(frozen=True)
class BatchingOption:
    """One way of batching.

    Attributes:
        name: A description.
        passes: Batches per epoch.
        padding: The share of padding in their tokens; with packing, the share of empty places.
        chosen: Whether the configuration batches this way.
    """

    name: str
    passes: int
    padding: float
    chosen: bool


def ways(cfg: Config, lengths: Lengths) -> list[BatchingOption]:
    """The ways of batching the rows, with the padding of each.

    Args:
        cfg: The configuration.
        lengths: Tokens of each row, after cutting, [N].
    """
    t, size = cfg.train, int(cfg.train.per_device_train_batch_size or 1)
    orders = {
        "random": ("in random order", torch.randperm(len(lengths), generator=torch.Generator().manual_seed(cfg.seed))),
        "sequential": ("in the files' order", torch.arange(len(lengths))),
        "group_by_length": ("length-grouped", torch.tensor(list(LengthGroups(lengths.tolist(), size, cfg.seed)))),
    }
    found = []
    for strategy, (name, order) in orders.items():
        chosen = strategy == t.train_sampling_strategy and not t.packing
        if chosen or strategy != "sequential":
            batches = torch.as_tensor(lengths)[order].split(size)
            room = sum(int(b.max()) * len(b) for b in batches)
            padding = 1 - int(lengths.sum()) / room
            found.append(BatchingOption(f"batches of {size}, {name}", len(batches), padding, chosen))
    packs = packed(lengths, t.max_length)
    empty = 1 - int(lengths.sum()) / (packs * t.max_length)
    name = f"batches of {size}, packed into {t.max_length:,} tokens (train.packing)"
    found.append(BatchingOption(name, -(-packs // size), empty, bool(t.packing)))
    return found


def packed(lengths: Lengths, room: int) -> int:
    """The number of packed rows of `room` tokens: best-fit decreasing.

    The same algorithm as TRL's packing (`bfd`), on the lengths alone.
    """
    open_packs: Counter[int] = Counter()  # by the room left
    left: list[int] = []  # the rooms that occur, in order
    for length in -np.sort(-lengths):
        place = bisect_left(left, length)
        if place < len(left):
            taken = left[place]
            open_packs[taken] -= 1
            if not open_packs[taken]:
                del left[place], open_packs[taken]
        else:
            taken = room
        rest = taken - int(length)
        if rest not in open_packs:
            insort(left, rest)
        open_packs[rest] += 1
    return sum(open_packs.values())
