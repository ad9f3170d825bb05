"""Lengths of rows: percentiles, a histogram, and what is padding and what is computed in each way of batching."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gemma_tune.config import Config
from gemma_tune.models.kernels.compact_batch import computed_tokens
from gemma_tune.page.histogram import Histogram
from gemma_tune.train.batches import has_media
from gemma_tune.train.grouped_samplers import BeginningGroups, LengthGroups, beginnings
from gemma_tune.validation.sampling import shares_nothing

Lengths = NDArray[np.int64]

_BARS = 60
_COUNTED = 100  # batches whose computed tokens are counted
_WORTH_A_HINT = 0.8  # of the tokens that the configuration computes


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
        computed: The share of the rows' tokens that is computed where batches are compact; None where there are media,
            or rows share nothing by the configuration.
        chosen: Whether the configuration batches this way.
    """

    name: str
    passes: int
    padding: float
    computed: float | None
    chosen: bool


def ways(cfg: Config, lengths: Lengths, dataset: Any) -> list[BatchingOption]:
    """The ways of batching the rows, with what is padding and what is computed in each.

    Args:
        cfg: The configuration.
        lengths: Tokens of each row, after cutting, [N].
        dataset: The rows themselves, after cutting: the columns `input_ids` and `labels`.
    """
    t, size = cfg.train, int(cfg.train.per_device_train_batch_size or 1)
    by_length = LengthGroups(lengths.tolist(), size, cfg.seed)
    by_beginning = BeginningGroups(beginnings(dataset), size, cfg.seed)
    whole = has_media(dataset) or shares_nothing(cfg)
    orders = {
        "random": ("in random order", torch.randperm(len(lengths), generator=torch.Generator().manual_seed(cfg.seed))),
        "sequential": ("in the files' order", torch.arange(len(lengths))),
        "group_by_length": ("length-grouped", torch.tensor(list(by_length))),
        "group_by_beginning": ("grouped by beginning", torch.tensor(list(by_beginning))),
    }
    found = []
    for strategy, (name, order) in orders.items():
        chosen = strategy == t.train_sampling_strategy and not t.packing
        if chosen or strategy != "sequential":
            batches = order.split(size)
            room = sum(int(lengths[b].max()) * len(b) for b in batches)
            padding = 1 - int(lengths.sum()) / room
            share = None if whole else _computed(dataset, [b.tolist() for b in batches])
            found.append(BatchingOption(f"batches of {size}, {name}", len(batches), padding, share, chosen))
    packs = packed(lengths, t.max_length)
    empty = 1 - int(lengths.sum()) / (packs * t.max_length)
    name = f"batches of {size}, packed into {t.max_length:,} tokens (train.packing)"
    share = None if whole else 1.0
    found.append(BatchingOption(name, -(-packs // size), empty, share, bool(t.packing)))
    return found


def _computed(dataset: Any, batches: list[list[int]]) -> float:
    """The share of the tokens that is computed in compact batches; of many, of as many as suffice."""
    computed = tokens = 0
    for batch in batches[:: -(-len(batches) // _COUNTED)]:
        rows = dataset[batch]
        computed += computed_tokens(list(zip(rows["input_ids"], rows["labels"], strict=True)))
        tokens += sum(map(len, rows["input_ids"]))
    return computed / tokens


def sharing_hint(found: list[BatchingOption]) -> str | None:
    """What grouping by beginning would save, where it is more than a fifth of what is computed; else None.

    Args:
        found: As `ways` gives them.
    """
    now = next(way for way in found if way.chosen)
    *_, grouped, packs = found
    if grouped.computed is None or now.computed is None or grouped.computed > _WORTH_A_HINT * now.computed:
        return None
    also = " with train.packing=false" if now is packs else ""
    return (
        f"train.train_sampling_strategy=group_by_beginning{also} would compute {grouped.computed:.0%} of the tokens in "
        f"place of {now.computed:.0%} where batches are compact (train.compact_batches; by default on a CPU). Its "
        "batches are other ones: compare what the model learns."
    )


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
