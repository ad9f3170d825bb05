"""The grid that a checkpoint's weights are on already: its scales are found in the numbers, not derived anew.

Google's QAT checkpoints hold code · d in blocks of 32, with codes from -8 to 7 and d = absmax / 8 of the weights before
they were rounded. A positive extreme weight, which would have the code 8, was clipped to 7; a rule that takes the
extreme weight for -8 · d (that of llama.cpp, and our own) finds 7/8 of the scale there, and rounds the whole block
again. Here d is what divides all 32 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from gemma_tune.quant.grid import Grid, NotOnGrid

_LOWEST, _HIGHEST, _BLOCK = -8, 7, 32
# Signs of d with codes of the extreme weight, the likely ones first: Google's rule, then llama.cpp's, then blocks that
# training has left without an extreme code.
_CANDIDATES = ((1, 8), (1, 7), (-1, 8), (1, 6), (1, 5), (1, 4), (1, 3), (1, 2), (1, 1))
_FLOAT16_BITS = 11
# Blocks that are looked at together: some 10 MiB of float64 at a time
_AT_ONCE = 1 << 14


class Lattice(NamedTuple):
    """The scales that were found in a weight.

    Attributes:
        scales: float16, [..., N / 32]; 0 for blocks of zeros, and for those on no lattice.
        off: Blocks whose numbers are no multiples from -8 to 7 of one scale, bool, [..., N / 32].
        rounded: How many of the other blocks are not stored as code · scale to the bit: float16 has no such scale.
    """

    scales: torch.Tensor
    off: torch.Tensor
    rounded: int


@dataclass(frozen=True, eq=False)
class StoredGrid(Grid):
    """A 4-bit grid whose scales are given: that of one tensor of a checkpoint.

    A weight is rounded to the nearest code; beyond the lowest and the highest code it is clipped. A block whose scale
    is 0 stays 0.

    Attributes:
        scales: float16, [..., N / 32].
    """

    scales: torch.Tensor = field(kw_only=True, repr=False)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        """Two are one grid only where they are the same object: comparing scales would take long."""
        return self is other

    @property
    def derives_again(self) -> bool:
        """See `Grid`: the extreme code of a block need not be the lowest."""
        return False

    def of_rows(self, rows: slice) -> Grid:
        """See `Grid`."""
        return stored_grid(self.scales[rows])

    def _encoded(self, weight: torch.Tensor, found: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if weight.shape != (*self.scales.shape[:-1], self.scales.shape[-1] * self.block):
            raise NotOnGrid(f"its shape is {tuple(weight.shape)}, and its scales are {tuple(self.scales.shape)}")
        parts = (weight.detach().reshape(-1, self.block), found.view(-1, self.block), self.scales.reshape(-1, 1))
        for values, codes, stored in zip(*(part.split(_AT_ONCE) for part in parts), strict=True):
            scale = stored.to(weight.device, torch.float32)
            if not torch.isfinite(values).all():
                raise NotOnGrid("it holds NaN or infinity")
            torch.div(values.float(), torch.where(scale == 0, torch.inf, scale), out=codes)
            codes.add_(0.5 - _LOWEST).trunc_().clamp_(0, _HIGHEST - _LOWEST).add_(_LOWEST)
            yield codes, scale


def stored_grid(scales: torch.Tensor) -> StoredGrid:
    """The 4-bit grid with these scales, [..., N / 32]."""
    return StoredGrid("q4_0_checkpoint", scale_bits=None, scales=scales)


def find_lattice(weight: torch.Tensor) -> Lattice:
    """Finds the scales of a weight whose blocks are on a 4-bit grid.

    The weight was stored in bfloat16, float16 or float32, whichever is the narrowest that holds it; a product of code
    and scale was rounded to that type. Every scale that gives the stored numbers to the bit is right. Of those, one
    with which the extreme code is -8 or 7 is taken, of these the one whose products need no rounding, and else the one
    with the fewest significant bits. Where float16, in which Q4_0 files hold scales, has none, the nearest one is
    taken, and the block counts as rounded.

    Args:
        weight: [..., N].

    Raises:
        NotOnGrid: N is not a multiple of 32; NaN or infinity.
    """
    if weight.shape[-1] % _BLOCK:
        raise NotOnGrid(f"its width, {weight.shape[-1]}, is not a multiple of {_BLOCK}")
    parts = weight.detach().reshape(-1, _BLOCK).split(_AT_ONCE)
    if not all(torch.isfinite(part).all() for part in parts):
        raise NotOnGrid("it holds NaN or infinity")
    stored = _narrowest(parts)
    found = [_find(part.double(), stored) for part in parts]
    scales, off, exact = (torch.cat(parts) for parts in zip(*found, strict=True))
    shape = (*weight.shape[:-1], -1)
    return Lattice(scales.half().view(shape), off.view(shape), int((~exact & ~off).sum()))


def _narrowest(parts: Sequence[torch.Tensor]) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(part.to(dtype).to(part.dtype), part) for part in parts):
            return dtype
    return torch.float32


def _find(blocks: torch.Tensor, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The scale of each block, [n, 32] in float64; which blocks have none; and which are stored as it says."""
    most = blocks.abs().amax(-1)
    scales = torch.zeros_like(most)
    # 1: code · scale, but for the rounding of the scale; 2: as they were stored; 3: the numbers themselves
    quality = torch.where(most == 0, 3, 0)
    settled = most == 0
    for sign, code in _CANDIDATES:
        left = (~settled).nonzero().squeeze(-1)
        if not len(left):
            break
        codes, near = _codes(blocks[left] * sign, most[left] / code, stored)
        left, codes = left[near], codes[near]
        values = blocks[left] * sign
        low, high = _bounds(values, codes, stored)
        scale, same = _simplest(low, high, values, codes, stored)
        itself = most[left] / code
        exact = (itself.half() == itself) & (codes * itself.unsqueeze(-1) == values).all(-1)
        scale = torch.where(exact, itself, scale)
        reached = torch.where(exact, 3, 1 + same.long()) * (low <= high)
        better = reached > quality[left]
        scales[left[better]], quality[left[better]] = scale[better] * sign, reached[better]
        # Codes with a common factor have other scales, too, one of which may need no rounding
        single = torch.stack([(codes % factor != 0).any(-1) for factor in (2, 3, 5, 7)]).all(0)
        settled[left] = (reached == 3) | ((reached == 2) & single)
    too_large = scales.abs() > torch.finfo(torch.float16).max / -_LOWEST
    return scales.masked_fill(too_large, 0), (quality == 0) | too_large, quality > 1


def _codes(values: torch.Tensor, scale: torch.Tensor, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of blocks by about this scale, and which blocks are as near to them as rounding leaves products."""
    info, scale = torch.finfo(stored), scale.unsqueeze(-1)
    ratio = values / scale
    codes = torch.round(ratio)
    rounding = 1.1 * info.eps * (codes.abs() + info.smallest_normal / scale)  # of the number, and of the scale
    near = ((ratio - codes).abs() <= rounding) & (codes >= _LOWEST) & (codes <= _HIGHEST)
    return codes, near.all(-1)


def _bounds(values: torch.Tensor, codes: torch.Tensor, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and highest positive scale with which all codes give these numbers, rounded as they were stored."""
    info = torch.finfo(stored)
    mantissa, exponent = torch.frexp(values.abs())
    least = info.smallest_normal * info.eps  # the distance of the smallest numbers
    above = (torch.exp2(exponent.double()) * info.eps / 2).clamp_min(least)
    below = torch.where(mantissa == 0.5, above / 2, above).clamp_min(least)  # a power of two
    size = codes.abs()
    none = size == 0
    low = torch.where(none, -torch.inf, (values.abs() - below / 2) / size).amax(-1)
    high = torch.where(none, torch.inf, (values.abs() + above / 2) / size).amin(-1)
    # What has the code 0 is 0, and a code has its number's sign
    wrong = ((values == 0) != none) | (values * codes < 0)
    return low.masked_fill(wrong.any(-1), torch.inf), high


def _simplest(
    low: torch.Tensor, high: torch.Tensor, values: torch.Tensor, codes: torch.Tensor, stored: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The float16 between two bounds with the fewest significant bits, [n], and whether it gives the stored numbers.

    The one that is nearest to their mean where there is none that does.
    """
    mean = torch.where(low <= high, (low + high) / 2, 0)
    found, same = mean.half().double(), torch.zeros_like(mean, dtype=torch.bool)
    exponent = torch.frexp(torch.where(torch.isfinite(high), high, 0)).exponent.double()
    for step in range(2, 2 * _FLOAT16_BITS + 2):
        bits, further = divmod(step, 2)  # the bound itself may be rounded the other way: then the next number
        left = (~same & (low <= high)).nonzero().squeeze(-1)
        if not len(left):
            break
        unit = torch.exp2(exponent[left] - bits)
        scale = (torch.ceil(low[left] / unit) + further) * unit
        between = (scale <= high[left]) & (scale.half().double() == scale)
        left, scale = left[between], scale[between]
        product = (codes[left] * scale.unsqueeze(-1)).to(stored).double()
        right = (product == values[left]).all(-1)
        found[left[right]], same[left[right]] = scale[right], True
    return found, same
