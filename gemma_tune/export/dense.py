"""`export=merged` of a model on a grid: a plain Transformers folder that holds the decoded weights."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict

from gemma_tune.config import ExportConfig
from gemma_tune.export.merged import whole_checkpoint
from gemma_tune.export.trained import Decoded, Trained
from gemma_tune.export.verify import verify_written
from gemma_tune.models.checkpoint import Checkpoint
from gemma_tune.models.load import family_of, load_config
from gemma_tune.models.source import Source
from gemma_tune.quant.plan import Plan

# What a checkpoint says of itself beside its weights and its tokenizer: how images and audio are prepared.
_KEPT = ("preprocessor_config.json", "processor_config.json")


def export(
    trained: Trained, plan: Plan, model: Any, tokenizer: Any, folder: Path, options: ExportConfig, source: Source
) -> list[Path]:
    """Writes weights, config, generation config, tokenizer and chat template.

    Each tensor has the narrower of bfloat16 and `options.dtype` that holds its numbers exactly; norms that were
    trained in float32 keep it.

    Args:
        trained: Every tensor of the language part (`trained_tensors`).
        plan: The plan that its codes are of.
        model: The trained model, or a PeftModel around it: its generation config.
        tokenizer: The tokenizer with our template.
        folder: Where to write.
        options: `dtype` of the weights in the files, and `max_shard_size`.
        source: What the model was loaded from.

    Returns:
        The files written.
    """
    wide = options.dtype == "float32"
    tensors = {n: tensor if wide else narrowest(tensor) for n, tensor in Decoded(trained, plan).items()}
    dtype = torch.bfloat16
    if wide or any(tensors[name].dtype == torch.float32 for name in plan.grids):
        dtype = torch.float32
    if dtype == torch.float32 and not wide:
        grids = ", ".join(sorted({grid.name for grid in plan.grids.values()}))
        print(f"merged: written in float32: bfloat16 can't hold the weights of {grids}.", file=sys.stderr)
    return write_folder(tensors, dtype, None, model, tokenizer, folder, options, source)


def narrowest(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in bfloat16 where that loses nothing, else in float32."""
    half = tensor.bfloat16()
    return half if torch.equal(half.float(), tensor) else tensor


def write_folder(
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    quantization: Mapping[str, Any] | None,
    model: Any,
    tokenizer: Any,
    folder: Path,
    options: ExportConfig,
    source: Source,
    parts: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> list[Path]:
    """Writes a Transformers folder with the tensors under the checkpoint's own names, its towers to the bit.

    Args:
        tensors: Of the language part, by their names there.
        dtype: What config.json says that the model computes in.
        quantization: `quantization_config` of config.json, or None.
        model: The trained model, or a PeftModel around it: its generation config.
        tokenizer: The tokenizer with our template.
        folder: Where to write.
        options: `max_shard_size`.
        source: What the model was loaded from.
        parts: Tensors of `tensors` that are stored as several: by name, the parts by the ends of their names.

    Returns:
        The files written.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, checkpoint = load_config(source), Checkpoint.of(source, family_of(source))
    placed = dict(tensors)
    if checkpoint.files:
        placed = dict(whole_checkpoint(tensors, checkpoint))
    elif checkpoint.family.has_towers:  # their weights can't be read, so the language part goes alone
        config = config.get_text_config()
        config.architectures = [checkpoint.family.language_class]
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in placed.items():
        several = (parts or {}).get(checkpoint.language.get(name, name))
        stored |= {name + end: part for end, part in several.items()} if several else {name: tensor}
    config.dtype = dtype
    if quantization is not None:
        config.quantization_config = dict(quantization)
    config.save_pretrained(folder)
    save_torch_state_dict(stored, folder, max_shard_size=options.max_shard_size, metadata={"format": "pt"})
    verify_written(folder, stored)
    base.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in _KEPT:
        if found := checkpoint.beside(name):
            shutil.copyfile(found, folder / name)
    return sorted(p for p in folder.iterdir() if p.is_file())
