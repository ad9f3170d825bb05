"""Batches of rows that have something in common, in random order (`train.train_sampling_strategy=group_by_…`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyarrow.compute import list_value_length
from torch.utils.data import Sampler

_BATCHES = 50  # batches' worth of rows that are sorted together by length, as in Transformers
# Beginnings are compared by blocks of tokens, each as four bytes: batches share 0.1 % less than token by token, for an
# eighth of the memory
_BLOCK = 8
_READ = 1000  # rows that are read at once: ten times as fast as one by one
_FACTORS = np.uint32(0x9E3779B1) ** np.arange(1, _BLOCK + 1, dtype=np.uint32)
# Rows of one beginning at least that follow one another: twice as many would save 5 % more, and so many of each other
# beginning would stand in a step that much less
_TOGETHER = 8


class GroupedSampler(Sampler[int], ABC):
    """Batches of rows that have something in common, in random order.

    The order depends on seed and epoch alone, so that a resumed run goes on exactly.

    Args:
        rows: N, their number.
        batch_size: Rows of a batch.
        seed: Of the order.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self._rows, self._batch_size, self._seed, self._epoch = rows, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        # Only the last batch may be short; elsewhere it would shift the borders of all batches after it
        *whole, last = self.batches(torch.randperm(len(self), generator=generator))
        shuffled = (whole[i] for i in torch.randperm(len(whole), generator=generator).tolist())
        return chain.from_iterable([*shuffled, last])

    @abstractmethod
    def batches(self, drawn: torch.Tensor) -> list[list[int]]:
        """The rows in batches, of which only the last may have fewer than `batch_size`.

        Args:
            drawn: The rows in random order, [N].
        """


class LengthGroups(GroupedSampler):
    """Batches of rows of similar length, in random order.

    Transformers' `LengthGroupedSampler` yields such batches from long to short, again and again, so the shortest rows
    are always learned last; and its order depends on torch's global state, which a resumed run can't repeat. Here the
    batches are shuffled.

    Args:
        lengths: Tokens of each row, [N].
        batch_size: Rows of an optimizer step, of all processes: the order is the same on any number of them.
        seed: Of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        super().__init__(len(lengths), batch_size, seed)
        self._lengths = torch.tensor(lengths)

    def batches(self, drawn: torch.Tensor) -> list[list[int]]:
        """As GroupedSampler."""
        parts = drawn.split(_BATCHES * self._batch_size)
        ordered = [part[self._lengths[part].argsort(descending=True)] for part in parts]
        return [batch.tolist() for part in ordered for batch in part.split(self._batch_size)]


class BeginningGroups(GroupedSampler):
    """Batches of rows that begin alike as far as possible, in random order: compact batches compute that once.

    Batches are cut out of the tree of all beginnings, from its leaves to its root: of the rows that begin alike, in the
    order drawn, as many whole batches as there are; the rest joins that of the beginnings that have most in common with
    theirs. So a beginning's rows stand in as few batches as they can, and with others in each epoch.

    A batch is the part of an optimizer step that stays together. It is small, so that a step of many rows has several
    beginnings; and it depends on the rows of the step alone, so the order is the same on any number of processes.

    Args:
        row_beginnings: Of each row, as `beginning` gives it, [N].
        step_rows: Rows of an optimizer step, of all processes.
        seed: Of the order.
    """

    def __init__(self, row_beginnings: Sequence[bytes], step_rows: int, seed: int) -> None:
        together = next(n for n in range(min(step_rows, _TOGETHER), step_rows + 1) if step_rows % n == 0)
        super().__init__(len(row_beginnings), together, seed)
        kinds = sorted(set(row_beginnings))  # as the leaves of the tree stand side by side
        number = {kind: n for n, kind in enumerate(kinds)}
        self._kind = [number[kind] for kind in row_beginnings]
        # What each leaf has in common with the next, in blocks
        self._alike = [*(_blocks_alike(one, other) for one, other in pairwise(kinds)), -1]

    def batches(self, drawn: torch.Tensor) -> list[list[int]]:
        """As GroupedSampler."""
        leaves: list[list[int]] = [[] for _ in self._alike]
        place = {row: n for n, row in enumerate(drawn.tolist())}
        for row in place:
            leaves[self._kind[row]].append(row)
        whole: list[list[int]] = []

        def rest(parts: Iterable[list[int]]) -> list[int]:
            """What whole batches leave of some rows."""
            drawn_first = sorted((part for part in parts if part), key=lambda part: place[part[0]])
            rows = [row for part in drawn_first for row in part]
            end = len(rows) - len(rows) % self._batch_size
            whole.extend(rows[n : n + self._batch_size] for n in range(0, end, self._batch_size))
            return rows[end:]

        open_nodes: list[tuple[int, list[list[int]]]] = []  # what the rows of each have in common, and its rests
        for leaf, alike in zip(leaves, self._alike, strict=True):
            parts = [rest([leaf])]
            while open_nodes and open_nodes[-1][0] > alike:
                parts = [rest(open_nodes.pop()[1] + parts)]
            if open_nodes and open_nodes[-1][0] == alike:
                open_nodes[-1][1].extend(parts)
            else:
                open_nodes.append((alike, parts))
        return [*whole, open_nodes[0][1][0]]


def lengths(dataset: Any) -> list[int]:
    """The tokens of each row of a data set with the column `input_ids`."""
    batches = dataset.with_format("arrow", columns=["input_ids"]).iter(_READ)
    return [n for batch in batches for n in list_value_length(batch["input_ids"]).to_pylist()]


def beginnings(dataset: Any) -> list[bytes]:
    """The beginning of each row of a data set with the columns `input_ids` and `labels`."""
    columns = ("input_ids", "labels")
    batches = dataset.with_format("numpy", columns=columns).iter(_READ)
    return [beginning(*row) for batch in batches for row in zip(*(batch[c] for c in columns), strict=True)]


def beginning(input_ids: Sequence[int] | NDArray[Any], labels: Sequence[int] | NDArray[Any]) -> bytes:
    """What stands before a row's first label: four bytes, a polynomial modulo 2³², for every eight tokens.

    The last tokens that fill no block don't count. Blocks that differ hardly ever have the same bytes; where they do,
    rows stand side by side that share less.

    Args:
        input_ids: Token ids, [S].
        labels: -100 where nothing is trained, [S]; that of the first token predicts nothing.
    """
    labelled = np.flatnonzero(np.asarray(labels[1:]) != -100)
    before = int(labelled[0]) + 1 if len(labelled) else len(input_ids)
    blocks = np.asarray(input_ids[: before // _BLOCK * _BLOCK], np.uint32).reshape(-1, _BLOCK)
    packed: bytes = (blocks * _FACTORS).sum(1, dtype=np.uint32).tobytes()
    return packed


def _blocks_alike(one: bytes, other: bytes) -> int:
    """How many blocks two beginnings have in common."""
    most = min(len(one), len(other))
    mine, theirs = np.frombuffer(one[:most], np.uint32), np.frombuffer(other[:most], np.uint32)
    differ = np.flatnonzero(mine != theirs)
    return int(differ[0]) if len(differ) else len(mine)
