"""Norms and adapted layers in fewer passes over a tensor, while a model trains on a CPU.

Transformers' norm is eight operations, and their gradients twelve, each of which reads and writes a tensor in float32;
written out by hand it is five and seven, and the input alone is kept for the backward pass. Numbers are the same up to
rounding. What adapted layers do is in `lora.py`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from gemma_tune.models.family import FAMILIES
from gemma_tune.models.four_bit import is_four_bit
from gemma_tune.models.lora import Fused
from gemma_tune.models.size import keeps_decoded


class FusedNorm(torch.autograd.Function):  # type: ignore[misc]
    """x / sqrt(mean(x²) + eps) · w over the last dimension, computed in float32, and its gradients.

    `adds_one` is for families whose weight is 1 + w, and without a weight it is 1.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, adds_one: bool, eps: float) -> torch.Tensor:
        wide = x.float()
        with torch.autocast(x.device.type, enabled=False):  # in mixed precision it would be a product of bfloat16
            squares = torch.linalg.vecdot(wide, wide)
        scale = squares.div_(x.shape[-1]).add_(eps).rsqrt_()[..., None]
        ctx.save_for_backward(x, scale, weight)
        ctx.adds_one = adds_one
        normed = _scaled(wide, scale) if wide is x else wide.mul_(scale)
        return (normed if weight is None else normed.mul_(_factor(weight, adds_one))).to(x.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, weight = ctx.saved_tensors
        normed, inner = _scaled(x, scale), gradient.to(torch.float32, copy=True)
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (inner * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            inner = inner if weight is None else inner.mul_(_factor(weight, ctx.adds_one))
            along = torch.linalg.vecdot(inner, normed)[..., None].div_(-x.shape[-1])
            of_x = inner.addcmul_(normed, along).mul_(scale).to(x.dtype)
        return of_x, of_weight, None, None


def _scaled(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float32, copy=True).mul_(scale)


def _factor(weight: torch.Tensor, adds_one: bool) -> torch.Tensor:
    return weight.float() + 1 if adds_one else weight.float()


def _norm(module: Any, adds_one: bool, x: torch.Tensor) -> torch.Tensor:
    weight = module.weight if getattr(module, "with_scale", True) else None
    found: torch.Tensor = FusedNorm.apply(x, weight, adds_one, module.eps)
    return found


@contextlib.contextmanager
def training_layers(model: Any, fused: bool | None, decoded: bool | None) -> Iterator[None]:
    """Within it, norms and plain LoRA layers of a language part compute in fewer passes.

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
    packed = sum(m.in_features * m.out_features for m in model.modules() if is_four_bit(m))
    for module in norms:
        module.forward = functools.partial(_norm, module, adds_one)
    for layer in layers:
        layer.joins, layer.keeps_decoded = True, keeps_decoded(decoded, on_cpu, packed)
    try:
        yield
    finally:
        for module in norms:
            del module.forward
        for layer in layers:
            del layer.joins, layer.keeps_decoded
            layer.let_go()
