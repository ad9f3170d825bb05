"""Length-grouped batches in random order (`train.train_sampling_strategy=group_by_length`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_BATCHES = 50  # batches' worth of rows that are sorted together, as in Transformers


class LengthGroups(Sampler[int]):
    """Batches of rows of similar length, in random order.

    Transformers' `LengthGroupedSampler` yields such batches from long to short, again and again, so the shortest rows
    are always learned last; and its order depends on torch's global state, which a resumed run can't repeat. Here the
    batches are shuffled, and the order depends on seed and epoch alone.

    Args:
        lengths: Tokens of each row, [N].
        batch_size: Rows of an optimizer step, of all processes: the order is the same on any number of them.
        seed: Of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = torch.tensor(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self), generator=generator)
        parts = order.split(_BATCHES * self._batch_size)
        batches = [b for p in parts for b in p[self._lengths[p].argsort(descending=True)].split(self._batch_size)]
        # Only the last batch may be short; elsewhere it would shift the borders of all batches after it
        *whole, last = batches
        shuffled = [whole[i] for i in torch.randperm(len(whole), generator=generator)]
        return iter(torch.cat([*shuffled, last]).tolist())
