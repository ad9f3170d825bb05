"""gelu(gate)·up of a feed-forward block in half the time that torch takes for it on a CPU, forward and backward.

Gemma's gelu is the one with tanh, and torch's tanh takes five times as long on a CPU as its sigmoid. They are one
function: 0.5·x·(1 + tanh(u)) = x·σ(2u). The slope is computed beside the value, where both are in the cache, and kept
in place of the input, so that the backward pass is three products.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.activations import GELUTanh

_LINEAR = 2 * math.sqrt(2 / math.pi)  # 2u = _LINEAR·x + _CUBIC·x³
_CUBIC = 0.044715 * _LINEAR
_LAYERS = ("gate", "up", "down")
_BLOCK = 1 << 19  # numbers that are computed at a time: of many more, buffers of float32 leave the cache


class GatedGelu(torch.autograd.Function):  # type: ignore[misc]
    """gelu(gate)·up, computed in float32 and rounded after the gelu and after the product, as Transformers does."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        value, slope = _gelu(gate, with_slope=ctx.needs_input_grad[0])
        ctx.save_for_backward(value, slope, up)
        return value * up

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        value, slope, up = ctx.saved_tensors
        of_gate = (gradient * up).mul_(slope) if ctx.needs_input_grad[0] else None
        return of_gate, gradient * value if ctx.needs_input_grad[1] else None


def _gelu(gate: torch.Tensor, with_slope: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gelu and its slope, σ + x·σ'."""
    flat = gate.reshape(-1)
    value, slope = torch.empty_like(flat), torch.empty_like(flat) if with_slope else None
    size = max(1, min(_BLOCK, len(flat)))
    buffers = torch.empty(3, size, dtype=torch.promote_types(gate.dtype, torch.float32))
    linear = buffers.new_tensor(_LINEAR)
    for start in range(0, len(flat), size):
        block = flat[start : start + size]
        x, twice, sigma = buffers[:, : len(block)]
        x.copy_(block)
        torch.addcmul(linear, x, x, value=_CUBIC, out=twice).mul_(x)
        torch.sigmoid(twice, out=sigma)
        if slope is not None:  # x·(2u)' = 3·2u - 2·_LINEAR·x, so σ + x·σ' = σ + 3·σ·(1 - σ)·(2u - ⅔·_LINEAR·x)
            twice.add_(x, alpha=-2 / 3 * _LINEAR).addcmul_(sigma, twice, value=-1)
        value[start : start + size].copy_(x.mul_(sigma))
        if slope is not None:
            slope[start : start + size].copy_(sigma.addcmul_(sigma, twice, value=3))
    return value.view(gate.shape), None if slope is None else slope.view(gate.shape)


def has_gated_gelu(module: Any) -> bool:
    """Whether a module is a feed-forward block down(gelu(gate(x))·up(x)); Gemma 3n's sparse ones are more than that."""
    named = type(module).__name__.endswith("MLP") and isinstance(getattr(module, "act_fn", None), GELUTanh)
    whole = named and all(hasattr(module, f"{name}_proj") for name in _LAYERS)
    return whole and not getattr(module, "activation_sparsity", 0)


def feed_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The block's output."""
    gate, up = module.gate_proj(x), module.up_proj(x)
    found: torch.Tensor = module.down_proj(GatedGelu.apply(gate, up))
    return found
