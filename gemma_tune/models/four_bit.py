"""What is special about bitsandbytes' 4-bit layers: their layout, their values, and what rounding took from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from gemma_tune.models.checkpoint import CheckpointFiles


def is_four_bit(module: nn.Module) -> bool:
    """Whether a layer is bitsandbytes' Linear4bit (PEFT's layers around one are not)."""
    from bitsandbytes.nn import Linear4bit

    return isinstance(module, Linear4bit)


def keep_layout(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit layers for inference, which training does not survive.

    On CPUs with AVX512-BF16 the first pass in evaluation mode repacks the weight in place for a bfloat16 kernel
    without a backward pass. An evaluation before training thus cuts the gradients of all layers below, and what is
    read from the weight afterwards is scrambled (bitsandbytes 0.50, `Linear4bit.forward`).
    """
    for module in model.modules():
        if is_four_bit(module):
            module.support_avx512bf16_for_cpu = False


def weight_of(layer: Any) -> torch.Tensor:
    """The weight that the forward pass uses, float32 on the CPU, [out, in]; 4-bit ones dequantised."""
    weight = dequantize_module_weight(layer) if is_four_bit(layer) else layer.weight
    return weight.detach().float().cpu()


def _originals(model: Any, checkpoint: CheckpointFiles) -> Iterator[tuple[Any, torch.Tensor]]:
    """Every 4-bit layer (or the LoRA layer around it) with its weight in the checkpoint, float32, [out, in].

    One tensor at a time is read. Nothing is yielded where the checkpoint has no safetensors files.
    """
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if is_four_bit(m)}
    layers |= {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer) and is_four_bit(m.get_base_layer())}
    for name, own in checkpoint.language.items():
        layer = layers.get(own.removesuffix(".weight"))
        if layer is not None:
            yield layer, checkpoint.read(name).float()


def rounding_gap(model: Any, checkpoint: CheckpointFiles) -> float | None:
    """How far the 4-bit weights are from the checkpoint's: ‖W₄ − W‖ / ‖W‖ over all 4-bit layers (Frobenius).

    That is what merging into the checkpoint's weights would change in silence, and what our merge keeps.

    Args:
        model: The model, not the PeftModel around it.
        checkpoint: What the model was loaded from.

    Returns:
        The ratio, or None where the checkpoint has no safetensors files.
    """
    gap = norm = 0.0
    for layer, original in _originals(model, checkpoint):
        base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        gap += (weight_of(base) - original).square().sum().item()
        norm += original.square().sum().item()
    return (gap / norm) ** 0.5 if norm else None


def init_loftq(model: Any, checkpoint: CheckpointFiles, adapter: str = "default") -> int:
    """Starts each adapter as the best rank-r image of what 4-bit rounding lost: s·B·A ≈ W − W₄.

    One round of LoftQ (https://arxiv.org/abs/2310.08659), in which the 4-bit weights stay as they are. PEFT's
    `replace_lora_weights_loftq` does the same, but only on a GPU, and leaves out the scale s = lora_alpha / r.

    Args:
        model: The model with its adapters, not the PeftModel around it.
        checkpoint: What the model was loaded from.
        adapter: Name of the adapter.

    Returns:
        How many adapters were set; 0 where the checkpoint has no safetensors files.
    """
    done = 0
    for layer, original in _originals(model, checkpoint):
        if not isinstance(layer, LoraLayer):
            continue
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        lost = (original - weight_of(layer.get_base_layer())).to(a.device)
        u, s, vh = torch.linalg.svd(lost / layer.scaling[adapter], full_matrices=False)
        root = s[: a.shape[0]].sqrt()
        a.data.copy_(root.unsqueeze(1) * vh[: a.shape[0]])
        b.data.copy_(u[:, : a.shape[0]] * root)
        done += 1
    return done
