"""The int4 grid: which values a block of weights can hold. One code path for training, every exporter and the check.

A block of 32 weights along `in_features` shares a scale; docs/int4.md says why the grid is as it is. All arithmetic is
in float32. Imports no other part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

# Scales that float16 holds with 5 significant bits begin here; and no weight may leave float16.
_LEAST, _FLOAT16_MOST = 2.0**-20, 65504.0


class NotOnGrid(ValueError):
    """Weights that no block can hold; the message says why, and the caller which tensor."""


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
    """Codes times one scale a block: the extreme weight of a block gives the scale, and has the lowest code.

    Attributes:
        name: What `quant=` calls it.
        bits: Of a code; codes go from -2^(bits-1) to 2^(bits-1) - 1.
        block: Weights that share a scale.
        scale_bits: Significant bits that a scale is rounded to, before the codes are taken; None: the scale is rounded
            to float16 after that, which is llama.cpp's own rule to the bit.
        from_zero: The scale is the largest magnitude by the highest code, rounded up; codes are symmetric around 0.
            Without it the scale has the sign that makes the extreme weight's code the lowest one.
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

    def encode(self, weight: torch.Tensor) -> Encoded:
        """Weights as codes and scales.

        Args:
            weight: Of any float type, [..., N].

        Raises:
            NotOnGrid: N is no multiple of `block`; NaN or infinity; a scale that float16 can't hold.
        """
        codes, scales = self._encode(weight)
        if (scales.abs() > _FLOAT16_MOST / (2 ** (self.bits - 1) - self.from_zero)).any():
            raise NotOnGrid(f"its largest weight is {weight.abs().max().item():.3g}, and the scale leaves float16")
        return Encoded(codes.flatten(-2).to(torch.int8), torch.where(scales == 0, -0.0, scales).squeeze(-1))

    def decode(self, encoded: Encoded) -> torch.Tensor:
        """The weights that codes and scales stand for, float32, [..., N]."""
        codes = encoded.codes.float().unflatten(-1, (-1, self.block))
        return (codes * encoded.scales.unsqueeze(-1) + 0.0).flatten(-2)

    def fake(self, weight: torch.Tensor) -> torch.Tensor:
        """decode(encode(weight)), in float32, with the gradient of the identity."""
        return _Fake.apply(weight, self)

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """decode(encode(weight)) without a gradient and without a look at what float16 holds: the training forward."""
        codes, scales = self._encode(weight.detach())
        return codes.mul_(scales).add_(0.0).flatten(-2)

    def _encode(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes as float32, [..., N / block, block], and scales, [..., N / block, 1]."""
        if weight.shape[-1] % self.block:
            raise NotOnGrid(f"its width, {weight.shape[-1]}, is no multiple of {self.block}")
        blocks = weight.detach().float().unflatten(-1, (-1, self.block))
        exact = self._scale(blocks)
        if not torch.isfinite(exact).all():
            raise NotOnGrid("it holds NaN or infinity")
        scale = self._rounded_scale(exact)
        lowest, highest = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        if self.from_zero:
            codes = (blocks / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-highest, highest)
        else:
            # llama.cpp's rule is a product with the reciprocal of the scale before it was rounded
            if self.scale_bits is None:
                codes = blocks * torch.where(scale == 0, 0.0, 1.0 / exact)
            else:
                codes = blocks / torch.where(scale == 0, torch.inf, scale)
            codes = codes.add_(0.5 - lowest).trunc_().clamp_(0, highest - lowest).add_(lowest)
        return codes, scale

    def _scale(self, blocks: torch.Tensor) -> torch.Tensor:
        high, low = blocks.amax(-1, keepdim=True), blocks.amin(-1, keepdim=True)
        if self.from_zero:
            return torch.maximum(high, -low) / (2 ** (self.bits - 1) - 1)
        extreme = torch.where(high > -low, high, low)
        tied = (high == -low) & (high != 0)
        if tied.any():  # the first one counts, whatever its sign
            first = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
            extreme = torch.where(tied, first, extreme)
        return extreme / -(2.0 ** (self.bits - 1))

    def _rounded_scale(self, scale: torch.Tensor) -> torch.Tensor:
        if self.scale_bits is None:
            return scale.half().float()
        mantissa, exponent = torch.frexp(scale)  # mantissa within [0.5, 1): so many bits are whole numbers of 2^-bits
        steps = 2.0**self.scale_bits
        whole = (mantissa * steps).ceil() if self.from_zero else (mantissa * steps).round()
        rounded = torch.ldexp(whole / steps, exponent)
        return torch.where(rounded.abs() < _LEAST, 0.0, rounded)


class _Fake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        return grid.rounded(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


GRIDS = {
    grid.name: grid
    for grid in (
        Grid("q4_0"),
        Grid("q4_0_fp16", scale_bits=None),
        Grid("q3_0", bits=3),
        # A power of two times at most 127: exact in bfloat16
        Grid("q8_0", bits=8, scale_bits=1, from_zero=True),
    )
}
