"""LoRA layers that compute the adapter in the layer's own dtype and add it to the layer's output in one kernel.

Suffixes of shapes: N positions (all leading dimensions), I inputs, O outputs of the layer, R rank of the adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit as FourBit
from peft.tuners.lora import bnb
from peft.tuners.lora import layer as lora
from torch import nn

Layers = dict[type[nn.Module], type[nn.Module]]


class FusedLora(torch.autograd.Function):  # type: ignore[misc]
    """y + s·B·(A·x) with one `addmm`, and the gradients of x, y, A and B by the chain rule.

    PEFT's own forward casts x to the adapter's float32, scales the product, casts it back and adds it. Each of these
    writes a tensor of full size, and the backward pass does so again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        x_NI = x.reshape(-1, x.shape[-1]).to(y.dtype)
        a_RI, b_OR = a.to(y.dtype), (b * scaling).to(y.dtype)
        ctx.scaling, ctx.types = scaling, (x.dtype, a.dtype, b.dtype)
        with torch.autocast(x.device.type, enabled=False):  # 4-bit layers give float32 under it, and so does this
            low_NR = x_NI @ a_RI.T
            ctx.save_for_backward(x_NI, low_NR, a_RI, b_OR)
            return torch.addmm(y.reshape(-1, y.shape[-1]), low_NR, b_OR.T).view(y.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NI, low_NR, a_RI, b_OR = ctx.saved_tensors
        of_x, of_a, of_b = ctx.types
        gradient = gradients[0]
        dy_NO = gradient.reshape(-1, gradient.shape[-1])
        dlow_NR = dy_NO @ b_OR
        dx = (dlow_NR @ a_RI).view(*gradient.shape[:-1], -1).to(of_x) if ctx.needs_input_grad[0] else None
        return dx, gradient, (dlow_NR.T @ x_NI).to(of_a), (dy_NO.T @ low_NR).to(of_b) * ctx.scaling, None


def _joined(layer: Any, x: torch.Tensor, given: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor | None:
    """The layer's output if it is plain LoRA with one adapter, else None."""
    if given or named or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return None
    a, b, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    output: torch.Tensor = FusedLora.apply(layer.lora_dropout[name](x), layer.base_layer(x), a, b, scaling)
    return output


class _Fused(nn.Module):  # type: ignore[misc]
    """`FusedLora` in front of PEFT's layer; DoRA, several adapters and all other cases use PEFT's own forward."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output, [..., out]."""
        found = _joined(self, x, args, kwargs)
        return super().forward(x, *args, **kwargs) if found is None else found


class Linear(_Fused, lora.Linear):  # type: ignore[misc]
    """Over weights of 16 or 32 bit."""


class Linear4bit(_Fused, bnb.Linear4bit):  # type: ignore[misc]
    """Over 4-bit weights."""


# PEFT takes the first match, and bitsandbytes' layer is an nn.Linear, too
FUSED_LAYERS: Layers = {FourBit: Linear4bit, nn.Linear: Linear}
