"""The values and the rounding error of bitsandbytes' 4-bit layers, and adapters that begin with that error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight

from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.four_bit import is_four_bit


def weight_of(layer: Any) -> torch.Tensor:
    """The weight that the forward pass uses, as float32 on the CPU, [out, in]; a 4-bit one is dequantized."""
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
    """Relative error of the 4-bit weights: ‖W₄ − W‖ / ‖W‖ over all 4-bit layers (Frobenius norm).

    Merging the adapter into the checkpoint's weights would silently drop this error, which it was trained with; our
    merge keeps it.

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
    """Initialises each adapter with the best rank-r approximation of the 4-bit rounding error: s·B·A ≈ W − W₄.

    One round of LoftQ (https://arxiv.org/abs/2310.08659), in which the 4-bit weights stay as they are. PEFT's
    `replace_lora_weights_loftq` does the same, but only on a GPU, and omits the scale s = lora_alpha / r.

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
