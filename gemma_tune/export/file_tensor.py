"""Tensors by rows: how they are divided, and what is to be written into a safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch

# Weights of the rows that are worked on at once: 4 MiB in float32; what is computed from them is several times as much
AT_ONCE = 1 << 20


def row_blocks(shape: tuple[int, ...]) -> list[slice]:
    """Divides a tensor's rows into blocks of at most `AT_ONCE` weights, and at least one row."""
    rows = max(1, AT_ONCE // max(1, prod(shape[1:])))
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file, whose rows are computed when they are written.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        blocks: Computes its rows, some at a time and in order.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterable[torch.Tensor]]

    @classmethod
    def of(cls, tensor: torch.Tensor | FileTensor) -> FileTensor:
        """One of a tensor in memory."""
        if isinstance(tensor, FileTensor):
            return tensor
        shape = tuple(tensor.shape)
        return cls(shape, tensor.dtype, lambda: (tensor[rows] for rows in row_blocks(shape)) if shape else [tensor])

    @property
    def size(self) -> int:
        """Bytes."""
        return int(prod(self.shape) * self.dtype.itemsize)


FileTensors = Mapping[str, torch.Tensor | FileTensor]
