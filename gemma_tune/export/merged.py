"""`export=merged`: a plain Transformers folder with the adapter merged into the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from gemma_tune.config import ExportConfig
from gemma_tune.export.transformers_folder import write_folder
from gemma_tune.models.four_bit import is_four_bit, weight_of
from gemma_tune.models.source import Source
from gemma_tune.models.unwrap import language_part


def merged_weight(layer: LoraLayer, adapter: str = "default") -> torch.Tensor:
    """W + ΔW in float32, [out, in]; with DoRA rescaled to the learned magnitude of each row.

    PEFT's own merge of a 4-bit layer rounds the sum to 4 bit again; this doesn't.
    Source of the DoRA formula: https://arxiv.org/abs/2402.09353, equation 5.
    """
    merged = weight_of(layer.get_base_layer()) + layer.get_delta_weight(adapter).detach().float().cpu()
    magnitudes = getattr(layer, "lora_magnitude_vector", {})
    if adapter in magnitudes:
        magnitude = magnitudes[adapter].weight.detach().float().cpu()  # [out]
        merged = merged * (magnitude / merged.norm(dim=1)).unsqueeze(1)
    return merged


def merged_weights(model: Any) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Every weight under its plain name; merged when it is called for, on the CPU."""
    base = language_part(model)
    tied = base.config.get_text_config().tie_word_embeddings
    inside = "\0"  # the prefix of the LoRA layer that the walk is in; its parts are in the weight that was yielded
    for name, module in base.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, LoraLayer):
            inside = f"{name}."
            yield f"{name}.weight", partial(merged_weight, module)
        elif is_four_bit(module):
            yield f"{name}.weight", partial(weight_of, module)
        elif not (tied and name == "lm_head"):
            for own, parameter in module.named_parameters(recurse=False):
                yield f"{name}.{own}", parameter.detach().cpu


def merged_tensors(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor under its plain name, one at a time, on the CPU, rounded once: from float32 to `dtype`."""
    for name, read in merged_weights(model):
        yield name, read().to(dtype)


def export(model: Any, tokenizer: Any, folder: Path, options: ExportConfig, source: Source) -> list[Path]:
    """Writes weights, config, generation config, tokenizer and chat template.

    Args:
        model: The trained model, or a PeftModel around it; it is not changed.
        tokenizer: The tokenizer with our template.
        folder: Where to write.
        options: `dtype` of the weights in the files, and `max_shard_size`.
        source: What the model was loaded from.

    Returns:
        The files written.
    """
    dtype = getattr(torch, options.dtype)
    tensors = dict(merged_tensors(model, dtype))
    return write_folder(tensors, dtype, None, model, tokenizer, folder, options, source)
