"""LoRA layers whose adapter is computed in the type of the layer's own product, and added while it is written."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit as FourBit
from peft.tuners.lora import bnb
from peft.tuners.lora import layer as lora
from torch import nn

Layers = dict[type[nn.Module], type[nn.Module]]


class FusedLora(torch.autograd.Function):  # type: ignore[misc]
    """y + s·B·(A·x) in one addition, with the gradients of x, y, A and B.

    Source: the chain rule. PEFT's own forward casts x to the adapter's float32, scales the product, casts it back and
    adds it, each a tensor of full size that is written, and again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
        low, high = a.to(y.dtype), (b * scaling).to(y.dtype)
        ctx.scaling, ctx.types = scaling, (x.dtype, a.dtype, b.dtype)
        with torch.autocast(x.device.type, enabled=False):  # 4-bit layers give float32 under it, and so does this
            between = rows @ low.T
            ctx.save_for_backward(rows, between, low, high)
            return torch.addmm(y.reshape(-1, y.shape[-1]), between, high.T).view(y.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, between, low, high = ctx.saved_tensors
        of_x, of_a, of_b = ctx.types
        gradient = gradients[0]
        outer = gradient.reshape(-1, gradient.shape[-1])
        inner = outer @ high
        dx = (inner @ low).view(*gradient.shape[:-1], -1).to(of_x) if ctx.needs_input_grad[0] else None
        return dx, gradient, (inner.T @ rows).to(of_a), (outer.T @ between).to(of_b) * ctx.scaling, None


def _joined(layer: Any, x: torch.Tensor, given: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor | None:
    """The layer's output where it is plain LoRA of one adapter, else None."""
    if given or named or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return None
    a, b, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    joined: torch.Tensor = FusedLora.apply(layer.lora_dropout[name](x), layer.base_layer(x), a, b, scaling)
    return joined


class Linear(lora.Linear):  # type: ignore[misc]
    """PEFT's layer, joined; with DoRA, several adapters and what else there is, PEFT's own forward."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output, [..., out]."""
        found = _joined(self, x, args, kwargs)
        return super().forward(x, *args, **kwargs) if found is None else found


class Linear4bit(bnb.Linear4bit):  # type: ignore[misc]
    """The same over 4-bit weights."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output, [..., out]."""
        found = _joined(self, x, args, kwargs)
        return super().forward(x, *args, **kwargs) if found is None else found


# The first that fits is taken, and bitsandbytes' layer is an nn.Linear, too
FUSED_LAYERS: Layers = {FourBit: Linear4bit, nn.Linear: Linear}
