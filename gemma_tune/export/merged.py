"""`export=merged`: one plain Transformers folder, in which the adapter is part of the weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from gemma_tune.config import ExportConfig
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.load import is_four_bit, load_config
from gemma_tune.models.source import Source


def base_weight(layer: Any) -> torch.Tensor:
    """The weight that the forward pass uses, float32 on the CPU, [out, in]; 4-bit ones dequantised."""
    weight = dequantize_module_weight(layer) if is_four_bit(layer) else layer.weight
    return weight.detach().float().cpu()


def merged_weight(layer: LoraLayer, adapter: str = "default") -> torch.Tensor:
    """W + ΔW in float32, [out, in]; with DoRA rescaled to the learned magnitude of each row.

    PEFT's own merge of a 4-bit layer rounds the sum to 4 bit again; this doesn't.
    Source of the DoRA formula: https://arxiv.org/abs/2402.09353, equation 5.
    """
    merged = base_weight(layer.get_base_layer()) + layer.get_delta_weight(adapter).detach().float().cpu()
    magnitudes = getattr(layer, "lora_magnitude_vector", {})
    if adapter in magnitudes:
        magnitude = magnitudes[adapter].weight.detach().float().cpu()  # [out]
        merged = merged * (magnitude / merged.norm(dim=1)).unsqueeze(1)
    return merged


def merged_tensors(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight under its plain name, one at a time, on the CPU, rounded once: from float32 to `dtype`."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    tied = base.config.get_text_config().tie_word_embeddings
    done: list[str] = []  # layers whose inner modules are part of what was yielded
    for name, module in base.named_modules():
        if any(name.startswith(f"{d}.") for d in done[-1:]):
            continue
        if isinstance(module, LoraLayer):
            done.append(name)
            yield f"{name}.weight", merged_weight(module).to(dtype)
        elif is_four_bit(module):
            yield f"{name}.weight", base_weight(module).to(dtype)
        elif not (tied and name == "lm_head"):
            for own, parameter in module.named_parameters(recurse=False):
                yield f"{name}.{own}", parameter.detach().cpu().to(dtype)


def export(model: Any, tokenizer: Any, folder: Path, options: ExportConfig) -> list[Path]:
    """Writes weights, config, generation config, tokenizer and chat template.

    Args:
        model: The trained model, or a PeftModel around it; it is not changed.
        tokenizer: The tokenizer with our template.
        folder: Where to write.
        options: `dtype` of the weights in the files, and `max_shard_size`.

    Returns:
        The files written.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype = getattr(torch, options.dtype)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config, dtype=dtype)  # its dtype goes into config.json
    shell.generation_config = base.generation_config
    shell.save_pretrained(folder, state_dict=dict(merged_tensors(model, dtype)), max_shard_size=options.max_shard_size)
    tokenizer.save_pretrained(folder)
    return sorted(p for p in folder.iterdir() if p.is_file())


def four_bit_gap(model: Any, source: Source) -> float | None:
    """How far the 4-bit weights are from the checkpoint's: ‖W₄ − W‖ / ‖W‖ over all 4-bit layers (Frobenius).

    That is what merging into the checkpoint's weights would change in silence, and what our merge keeps.

    Returns:
        The ratio, or None where the checkpoint has no safetensors files here.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = {n.replace(".base_layer", ""): m for n, m in base.named_modules() if is_four_bit(m)}
    folder = source.folder
    if folder is None:
        folder = Path(snapshot_download(source.base, revision=source.revision, local_files_only=True))
    mapping = FAMILIES[load_config(source).model_type].key_mapping or {}
    gap = norm = 0.0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118 (not a mapping)
                name = key
                for pattern, replacement in mapping.items():
                    name = re.sub(pattern, replacement, name)
                layer: nn.Module | None = layers.get(name.removesuffix(".weight"))
                if layer is not None:
                    original = stored.get_tensor(key).float()
                    gap += (base_weight(layer) - original).square().sum().item()
                    norm += original.square().sum().item()
    return (gap / norm) ** 0.5 if norm else None
