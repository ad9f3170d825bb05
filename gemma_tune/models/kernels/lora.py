"""LoRA layers that compute the adapter in the layer's own dtype and add it to the layer's output in one kernel.

While a model trains on a CPU (`training_layers.py`), the layer's own product is part of it: the adapter is added in
place to the output, and to the gradient of the input. A 4-bit weight may be kept decoded then; the numbers are those
that bitsandbytes decodes in each pass.

Suffixes of shapes: N positions (all leading dimensions), I inputs, O outputs of the layer, R rank of the adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit as FourBit
from peft.tuners.lora import bnb
from peft.tuners.lora import layer as lora
from torch import nn
from torch.autograd.function import once_differentiable

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


class JoinedLora(torch.autograd.Function):  # type: ignore[misc]
    """xWᵀ + s·B·(A·x) of a weight that isn't trained, [O, I], in its type, and the gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_OI: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        a_RI, b_OR = a.to(x.dtype), (b * scaling).to(x.dtype)
        low_NR = x_NI @ a_RI.T
        ctx.scaling, ctx.types = scaling, (a.dtype, b.dtype)
        ctx.save_for_backward(x_NI, low_NR, weight_OI, a_RI, b_OR)
        return (x_NI @ weight_OI.T).addmm_(low_NR, b_OR.T).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NI, low_NR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        of_a, of_b = ctx.types
        dy_NO = gradient.reshape(-1, gradient.shape[-1])
        dlow_NR = dy_NO @ b_OR
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy_NO @ weight_OI).addmm_(dlow_NR, a_RI).view(*gradient.shape[:-1], -1)
        # The gradient of B is computed transposed: a product of few rows is faster than one of few columns
        return dx, None, (dlow_NR.T @ x_NI).to(of_a), (low_NR.T @ dy_NO).T.to(of_b).mul_(ctx.scaling), None


def _adapter(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> str | None:
    """The name of the layer's adapter if it is plain LoRA with one, else None."""
    if given or named or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name: str = layer.active_adapters[0]
    return None if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name] else name


class Fused(nn.Module):  # type: ignore[misc]
    """Functions of ours in front of PEFT's layer; DoRA, several adapters and all other cases use PEFT's own forward.

    Attributes:
        joins: Whether the layer's own product is part of the function (`JoinedLora`).
        keeps_decoded: Whether a 4-bit weight is decoded once, and not in each pass.
    """

    joins = False
    keeps_decoded = False
    _decoded: tuple[torch.Tensor, int, torch.Tensor] | None = None  # the weight, its version, what it decodes to

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output, [..., out]."""
        name = _adapter(self, args, kwargs)
        if name is None:
            return super().forward(x, *args, **kwargs)
        a, b, scaling = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        x_dropped = self.lora_dropout[name](x)
        weight = self._own_weight(x) if self.joins and x_dropped is x else None
        found: torch.Tensor = (
            FusedLora.apply(x_dropped, self.base_layer(x), a, b, scaling)
            if weight is None
            else JoinedLora.apply(x, weight, a, b, scaling)
        )
        return found

    def let_go(self) -> None:
        """Frees the decoded weight."""
        self._decoded = None

    def _own_weight(self, x: torch.Tensor) -> torch.Tensor | None:
        """The weight that the layer's own product with x is one with, [out, in]; None where it is more than that."""
        base = self.base_layer
        hooks = base._forward_hooks or base._forward_pre_hooks
        if hooks or base.bias is not None or base.weight.requires_grad or torch.is_autocast_enabled(x.device.type):
            return None
        if type(base) is FourBit:
            same = base.compute_dtype in (None, x.dtype) and base.weight.quant_state.dtype == x.dtype
            return self._four_bit_weight(base.weight) if same else None
        plain = type(base) is nn.Linear and type(base.weight) is nn.Parameter and base.weight.dtype == x.dtype
        return base.weight if plain else None

    def _four_bit_weight(self, weight: Any) -> torch.Tensor | None:
        if not self.keeps_decoded:
            return None
        if self._decoded is None or self._decoded[0] is not weight or self._decoded[1] != weight._version:
            self._decoded = weight, weight._version, dequantize_4bit(weight.data.view(-1, 1), weight.quant_state)
        return self._decoded[2]


class Linear(Fused, lora.Linear):  # type: ignore[misc]
    """Over weights of 16 or 32 bit."""


class Linear4bit(Fused, bnb.Linear4bit):  # type: ignore[misc]
    """Over 4-bit weights."""


# PEFT takes the first match, and bitsandbytes' layer is an nn.Linear, too
FUSED_LAYERS: Layers = {FourBit: Linear4bit, nn.Linear: Linear}
