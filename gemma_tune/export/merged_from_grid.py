"""`export=merged` for a model on a grid: a plain Transformers folder with the decoded weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from gemma_tune.config import ExportConfig
from gemma_tune.export.tensors import DecodedWeights, TrainedTensors
from gemma_tune.export.transformers_folder import write_folder
from gemma_tune.models.source import Source
from gemma_tune.quant.plan import Plan


def export(
    trained: TrainedTensors, plan: Plan, model: Any, tokenizer: Any, folder: Path, options: ExportConfig, source: Source
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
    tensors = {n: tensor if wide else narrowest(tensor) for n, tensor in DecodedWeights(trained, plan).items()}
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
