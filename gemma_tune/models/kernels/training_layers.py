"""Norms, gelu and adapted layers in fewer passes over a tensor, while a model trains on a CPU.

Transformers' norm is eight operations, and their gradients twelve, each of which reads and writes a tensor in float32;
written out by hand it is five and eight, in blocks that fit a cache, and the input alone is kept for the backward pass.
Numbers are the same up to rounding. What adapted layers do is in `lora.py`, and what feed-forward blocks do in
`gelu.py`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from gemma_tune.models.estimate.size import keeps_decoded
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.four_bit import is_four_bit
from gemma_tune.models.kernels.gelu import feed_forward, has_gated_gelu
from gemma_tune.models.kernels.lora import Fused
from gemma_tune.models.kernels.switch import replace_forward, training_switch

_BLOCK = 1 << 19  # numbers of a large norm that are computed at a time on a CPU, so that they are in its cache


class FusedNorm(torch.autograd.Function):  # type: ignore[misc]
    """x / sqrt(mean(x²) + eps) · w over the last dimension, computed in float32, and its gradients.

    `adds_one` is for families whose weight is 1 + w, and without a weight it is 1.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, adds_one: bool, eps: float) -> torch.Tensor:
        if _in_blocks(x) and not _permuted(x, _order(x)).is_contiguous():
            x = x.contiguous()
        y, scale = torch.empty_like(x), torch.empty_like(x[..., :1], dtype=torch.float32)
        factor = None if weight is None else _factor(weight, adds_one)
        with torch.autocast(x.device.type, enabled=False):
            for x_part, y_part, scale_part in _blocks(x, y, scale):
                _norm_rows(x_part, y_part, scale_part, factor, eps)
        ctx.save_for_backward(x, scale, weight)
        ctx.adds_one = adds_one
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, weight = ctx.saved_tensors
        of_x = torch.empty_like(x)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        factor = None if weight is None else _factor(weight, ctx.adds_one)
        for x_part, dy, scale_part, part in _blocks(x, gradient, scale, of_x):
            _gradients_of_rows(x_part, dy, scale_part, part if ctx.needs_input_grad[0] else None, factor, of_weight)
        return (
            of_x if ctx.needs_input_grad[0] else None,
            None if of_weight is None else of_weight.to(weight.dtype),
            None,
            None,
        )


def _norm_rows(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, factor: torch.Tensor | None, eps: float) -> None:
    normed = x.to(torch.float32, copy=True)
    torch.linalg.vector_norm(normed, dim=-1, keepdim=True, out=scale)
    normed.mul_(scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_())
    y.copy_(normed if factor is None else normed.mul_(factor))


def _gradients_of_rows(
    x: torch.Tensor,
    dy: torch.Tensor,
    scale: torch.Tensor,
    of_x: torch.Tensor | None,
    factor: torch.Tensor | None,
    of_weight: torch.Tensor | None,
) -> None:
    wide, inner = x.to(torch.float32, copy=True), dy.to(torch.float32, copy=True)
    if of_weight is not None:
        of_weight += (inner * wide).mul_(scale).flatten(0, -2).sum(0)
    if of_x is not None:
        inner = inner if factor is None else inner.mul_(factor)
        along = torch.linalg.vecdot(inner, wide)[..., None].mul_(scale**3).div_(-x.shape[-1])
        of_x.copy_(inner.mul_(scale).addcmul_(wide, along))


def _in_blocks(x: torch.Tensor) -> bool:
    large: bool = x.numel() > 2 * _BLOCK  # below that, blocks cost more than they save
    return large and x.device.type == "cpu"


def _order(x: torch.Tensor) -> list[int]:
    """All dimensions but the last in the order in which they lie in memory, the outer ones first."""
    return sorted(range(x.dim() - 1), key=x.stride, reverse=True)


def _permuted(x: torch.Tensor, order: list[int]) -> torch.Tensor:
    return x.permute(*order, -1)


def _blocks(x: torch.Tensor, *others: torch.Tensor) -> Iterable[tuple[torch.Tensor, ...]]:
    """Of tensors that differ in their last dimension alone the rows that are computed at a time, as they lie in memory.

    All are views but for a gradient that lies there in another order.
    """
    if not _in_blocks(x):
        return [(x, *others)]
    order = _order(x)
    rows = [_permuted(t, order).reshape(-1, t.shape[-1]) for t in (x, *others)]
    blocks = -(-x.numel() // _BLOCK)
    return zip(*(t.split(-(-len(t) // blocks)) for t in rows), strict=True)


def _factor(weight: torch.Tensor, adds_one: bool) -> torch.Tensor:
    return weight.float() + 1 if adds_one else weight.float()


def _norm(adds_one: bool, module: Any, x: torch.Tensor) -> torch.Tensor:
    weight = module.weight if getattr(module, "with_scale", True) else None
    found: torch.Tensor = FusedNorm.apply(x, weight, adds_one, module.eps)
    return found


@contextlib.contextmanager
def training_layers(model: Any, fused: bool | None, decoded: bool | None) -> Iterator[None]:
    """Within it, norms, plain LoRA layers and, on a CPU, gelu of a language part compute in fewer passes.

    Args:
        model: The language part.
        fused: `model.fused_layers`; None: on a CPU.
        decoded: `model.keep_decoded`; None: on a CPU where the 4-bit weights are few.
    """
    on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    if not (on_cpu if fused is None else fused):
        yield
        return
    adds_one = FAMILIES[model.config.model_type].norm_adds_one
    # By name: the last norm may be inside PEFT's wrapper of layers that are trained whole, and FSDP renames classes
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    layers = [module for module in model.modules() if isinstance(module, Fused)]
    blocks = [module for module in model.modules() if on_cpu and has_gated_gelu(module)]
    packed = sum(m.in_features * m.out_features for m in model.modules() if is_four_bit(m))
    for layer in layers:
        layer.joins, layer.keeps_decoded = True, keeps_decoded(decoded, on_cpu, packed)
    try:
        with training_switch(model) as switch:
            for module in norms:
                replace_forward(module, functools.partial(_norm, adds_one), switch.on)
            for module in blocks:
                replace_forward(module, feed_forward, switch.on)
            yield
    finally:
        for module in (*norms, *blocks):
            del module.forward
        for layer in layers:
            del layer.joins, layer.keeps_decoded
            layer.let_go()
