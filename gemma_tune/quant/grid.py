"""The int4 grid: which values a block of weights can hold. Training, all exporters and the verification use this code.

A block of 32 weights along `in_features` shares a scale; docs/int4.md explains the choice of the grid. All arithmetic
is in float32. Imports no other part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

# The smallest scale that float16 holds with 5 significant bits, and the largest number of float16
_LEAST, _FLOAT16_MOST = 2.0**-20, 65504.0
# Weights that a CPU rounds at once: these and their codes, 2 MiB, stay in its cache
_IN_CACHE = 1 << 18
# Into how many parts the largest magnitude of a row is divided where the mean one is computed
_PARTS = 1 << 16


class NotOnGrid(ValueError):
    """Weights that no block can hold. The message says why; the caller adds the name of the tensor."""


class Encoded(NamedTuple):
    """Weights as codes and scales.

    Attributes:
        codes: int8, [..., N].
        scales: float32, [..., N / block]; -0.0 for a block of zeros, as llama.cpp writes it.
    """

    codes: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True)
class Grid:
    """Codes times one scale for each block. The weight of largest magnitude sets the scale and gets the lowest code.

    Attributes:
        name: What `quant=` calls it.
        bits: Of a code; codes go from -2^(bits-1) to 2^(bits-1) - 1.
        block: Weights that share a scale.
        scale_bits: Significant bits that a scale is rounded to, before the codes are taken; None: the scale is rounded
            to float16 after that, which is llama.cpp's own rule to the bit.
        from_zero: The scale is the largest magnitude divided by the highest code, rounded up, and codes are symmetric
            around 0. Without it the scale has the sign that gives the weight of largest magnitude the lowest code.
    """

    name: str
    bits: int = 4
    block: int = 32
    scale_bits: int | None = 5
    from_zero: bool = False

    @property
    def bits_per_weight(self) -> float:
        """With the 16 bits of the scale shared by its block."""
        return self.bits + 16 / self.block

    @property
    def fits_bfloat16(self) -> bool:
        """Whether bfloat16 holds every weight on the grid exactly: a product of code and scale has 8 bits at most."""
        return self.scale_bits is not None and self.bits - 1 + self.scale_bits <= 8

    @property
    def derives_again(self) -> bool:
        """Whether llama.cpp's own rule, applied to weights on the grid, gives the same scales and codes."""
        return self.bits == 4 and not self.from_zero

    def of_rows(self, rows: slice) -> Grid:
        """The grid of some rows of a tensor; another one only where each row has a grid of its own."""
        return self

    def encode(self, weight: torch.Tensor) -> Encoded:
        """Weights as codes and scales.

        Args:
            weight: Of any float type, [..., N].

        Raises:
            NotOnGrid: N is not a multiple of `block`; NaN or infinity; a scale that float16 can't hold.
        """
        codes = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        scales = torch.cat([scale for _, scale in self._encoded(weight, codes)]).view(*weight.shape[:-1], -1)
        if (scales.abs() > _FLOAT16_MOST / (2 ** (self.bits - 1) - self.from_zero)).any():
            raise NotOnGrid(
                f"its largest weight is {weight.abs().max().item():.3g}, and its scale is too large for float16"
            )
        return Encoded(codes.to(torch.int8), torch.where(scales == 0, -0.0, scales))

    def decode(self, encoded: Encoded) -> torch.Tensor:
        """The weights that codes and scales stand for, float32, [..., N]."""
        codes = encoded.codes.float().unflatten(-1, (-1, self.block))
        return (codes * encoded.scales.unsqueeze(-1) + 0.0).flatten(-2)

    def fake_quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """decode(encode(weight)), in float32, with the gradient of the identity."""
        return straight_through(weight, self.rounded(weight))

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """decode(encode(weight)) without a gradient, and without the check that float16 can hold the scales."""
        found = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        for codes, scale in self._encoded(weight, found):
            codes.mul_(scale).add_(0.0)
        return found

    def _encoded(self, weight: torch.Tensor, found: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Writes codes into `found`, [..., N]; yields some blocks of it at a time, [n, block], with scales, [n, 1]."""
        if weight.shape[-1] % self.block:
            raise NotOnGrid(f"its width, {weight.shape[-1]}, is not a multiple of {self.block}")
        together = self._share_a_scale(weight.shape[-1])
        blocks = weight.detach().reshape(-1, together)
        count = max(1, _IN_CACHE // together if weight.device.type == "cpu" else len(blocks))
        for part, codes in zip(blocks.split(count), found.view(-1, together).split(count), strict=True):
            yield codes, self._encode(part.float(), codes)

    def _share_a_scale(self, width: int) -> int:
        """How many weights of a row have one scale."""
        return self.block

    def _encode(self, blocks: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Writes the codes of blocks, [n, block], and returns their scales, [n, 1]; all in place, for speed."""
        exact = self._scale(blocks)
        if not torch.isfinite(exact).all():
            raise NotOnGrid("it holds NaN or infinity")
        scale = self._rounded_scale(exact)
        lowest, highest = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        if self.from_zero:
            torch.div(blocks, torch.where(scale == 0, 1.0, scale), out=codes)
            codes.round_().clamp_(-highest, highest)
            return scale
        # llama.cpp's rule is a product with the reciprocal of the scale before it was rounded
        if self.scale_bits is None:
            torch.mul(blocks, torch.where(scale == 0, 0.0, 1.0 / exact), out=codes)
        else:
            torch.div(blocks, torch.where(scale == 0, torch.inf, scale), out=codes)
        codes.add_(0.5 - lowest).trunc_().clamp_(0, highest - lowest).add_(lowest)
        return scale

    def _scale(self, blocks: torch.Tensor) -> torch.Tensor:
        high, low = blocks.amax(-1, keepdim=True), blocks.amin(-1, keepdim=True)
        if self.from_zero:
            return torch.maximum(high, -low) / (2 ** (self.bits - 1) - 1)
        extreme = torch.where(high > -low, high, low)
        tied = ((high == -low) & (high != 0)).squeeze(-1)
        if tied.any():  # the first one counts, whatever its sign
            some = blocks[tied]
            extreme[tied] = some.gather(-1, some.abs().argmax(-1, keepdim=True))
        return extreme / -(2.0 ** (self.bits - 1))

    def _rounded_scale(self, scale: torch.Tensor) -> torch.Tensor:
        if self.scale_bits is None:
            return scale.half().float()
        # On the bits of a float32: a mantissa that is rounded up to 2 carries into the exponent, as it must
        dropped = 24 - self.scale_bits
        bits = scale.view(torch.int32)
        to_even = (bits >> dropped & 1) + (2 ** (dropped - 1) - 1)
        rounded = (bits + (2**dropped - 1 if self.from_zero else to_even) & -(2**dropped)).view(torch.float32)
        return torch.where(rounded.abs() < _LEAST, 0.0, rounded)


@dataclass(frozen=True)
class ChannelGrid(Grid):
    """A grid with one scale for each row, an output channel: that of Gemma's phone format.

    A weight is rounded to the nearest code and clipped. The scale has so few significant bits that bfloat16 holds each
    product with a code, and is at most `of_mean` times the mean magnitude of the row: the largest weight alone would
    leave few codes to all others. On Gaussian rows of 1,536 the relative error is 0.12 in 4 bit and 0.39 in 2 bit (0.15
    and 0.67 where the largest weight sets the scale).

    Attributes:
        block: How many codes fill a byte, of which a row's width must be a multiple.
        from_zero: As in `Grid`: scales are rounded up, and are positive.
        of_mean: See above; None: the largest magnitude alone sets the scale.
    """

    from_zero: bool = True
    of_mean: float | None = None

    @property
    def bits_per_weight(self) -> float:
        """Without the 32 bits of the scale of a whole row."""
        return float(self.bits)

    def decode(self, encoded: Encoded) -> torch.Tensor:
        """As `Grid.decode`; scales are [..., 1]."""
        return encoded.codes.float() * encoded.scales + 0.0

    def _share_a_scale(self, width: int) -> int:
        return width

    def _encode(self, blocks: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        exact = self._scale(blocks)
        if not torch.isfinite(exact).all():
            raise NotOnGrid("it holds NaN or infinity")
        scale = self._rounded_scale(exact)
        torch.div(blocks, torch.where(scale == 0, torch.inf, scale), out=codes)
        codes.round_().clamp_(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
        return scale

    def _scale(self, blocks: torch.Tensor) -> torch.Tensor:
        largest = blocks.abs().amax(-1, keepdim=True)
        scale = largest / (2 ** (self.bits - 1) - 1)
        if self.of_mean is None or not torch.isfinite(largest).all():
            return scale
        # Whole numbers, whose sum is the same in whatever order they are added
        parts = (blocks.abs() / torch.where(largest == 0, 1.0, largest) * _PARTS).round_().to(torch.int64)
        mean = parts.sum(-1, keepdim=True).float() * (largest / (_PARTS * blocks.shape[-1]))
        return torch.minimum(scale, mean * self.of_mean)


def straight_through(weight: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The rounded weight, with the gradient of the identity for the weight that it was rounded from."""
    return _StraightThrough.apply(weight, rounded)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        ctx.dtype = weight.dtype
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.to(ctx.dtype), None


GRIDS = {
    grid.name: grid
    for grid in (
        Grid("q4_0"),
        Grid("q4_0_fp16", scale_bits=None),
        Grid("q3_0", bits=3),
        # A power of two times at most 127: exact in bfloat16
        Grid("q8_0", bits=8, scale_bits=1, from_zero=True),
        ChannelGrid("int8_channel", bits=8, block=1, scale_bits=1),
        ChannelGrid("int4_channel", bits=4, block=2, of_mean=0.5),
        ChannelGrid("int2_channel", bits=2, block=4, of_mean=1.4),
    )
}
