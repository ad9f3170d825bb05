"""`export=merged`: a plain Transformers folder with the adapter merged into the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gemma_tune.config import ExportConfig
from gemma_tune.export.transformers_folder import write_folder
from gemma_tune.models.adapters.merging import merged_weights
from gemma_tune.models.source import Source


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
