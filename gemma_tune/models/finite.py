"""Finds NaN and infinite numbers in tensors: one pass, no copy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """The names of the tensors with a NaN or an infinite number; those of whole numbers are passed over.

    The smallest and the largest number are finite only where all are (NaN spreads to both), and finding them takes
    a fraction of the time of `torch.isfinite`, which writes tensors of full size.
    """
    found = []
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        if not torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all():
            found.append(name)
    return found


def say_not_finite(names: Sequence[str]) -> str:
    """`NAME holds NaN or infinite numbers`, with the number of further tensors."""
    more = f" and {len(names) - 1} other tensors hold" if len(names) > 1 else " holds"
    return f"{names[0]}{more} NaN or infinite numbers"
