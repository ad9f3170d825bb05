"""`export=merged`: one plain Transformers folder, in which the adapter is part of the weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from gemma_tune.config import ExportConfig
from gemma_tune.export.verify import ArtifactDiffers, verify_written
from gemma_tune.models.checkpoint import Checkpoint
from gemma_tune.models.four_bit import is_four_bit, weight_of
from gemma_tune.models.load import family_of, load_config
from gemma_tune.models.source import Source


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


def merged_tensors(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor under its plain name, one at a time, on the CPU, rounded once: from float32 to `dtype`."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    tied = base.config.get_text_config().tie_word_embeddings
    inside = "\0"  # the LoRA layer whose own parts are walked through; they are part of what was yielded
    for name, module in base.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, LoraLayer):
            inside = f"{name}."
            yield f"{name}.weight", merged_weight(module).to(dtype)
        elif is_four_bit(module):
            yield f"{name}.weight", weight_of(module).to(dtype)
        elif not (tied and name == "lm_head"):
            for own, parameter in module.named_parameters(recurse=False):
                yield f"{name}.{own}", parameter.detach().cpu().to(dtype)


def whole_checkpoint(tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """The merged tensors under the names that the checkpoint has, and all else that it holds, to the bit.

    So the export has the checkpoint's tensors, no more and no less: the towers for images and audio, which are not
    trained, fixed scales, and the keys and values of layers that share others' and never use their own.

    Args:
        tensors: Of the language part, by their names there.
        checkpoint: What the model was loaded from.

    Raises:
        ArtifactDiffers: The checkpoint has no place for a merged tensor.
    """
    embedding, head = checkpoint.family.tied
    left = set(tensors)
    for name in checkpoint.files:
        own = checkpoint.language.get(name, name)
        left.discard(own)
        if own in tensors:
            yield name, tensors[own]
        elif own == head:  # tied, and stored once more; one memory under two names would be written once
            yield name, tensors[embedding].clone()
        else:
            yield name, checkpoint.read(name)
    if left:
        raise ArtifactDiffers(f"{checkpoint.folder} has no place for {len(left)} weights, for example {min(left)}.")


# What a checkpoint says of itself beside its weights and its tokenizer: how images and audio are prepared.
_KEPT = ("preprocessor_config.json", "processor_config.json")


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
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config, checkpoint = load_config(source), Checkpoint.of(source, family_of(source))
    tensors = dict(merged_tensors(model, dtype := getattr(torch, options.dtype)))
    if checkpoint.files:
        tensors = dict(whole_checkpoint(tensors, checkpoint))
    elif checkpoint.family.has_towers:  # their weights can't be read, so the language part goes alone
        config = config.get_text_config()
        config.architectures = [checkpoint.family.language_class]
    config.dtype = dtype
    config.save_pretrained(folder)
    save_torch_state_dict(tensors, folder, max_shard_size=options.max_shard_size, metadata={"format": "pt"})
    verify_written(folder, tensors)
    base.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in _KEPT:
        if found := checkpoint.beside(name):
            shutil.copyfile(found, folder / name)
    return sorted(p for p in folder.iterdir() if p.is_file())
