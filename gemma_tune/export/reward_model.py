"""Exports a reward model as a plain Transformers folder, and loads it with plain Transformers to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gemma_tune.config import ExportConfig
from gemma_tune.data.pairs import Pairs
from gemma_tune.evals.reward_scores import score_pairs
from gemma_tune.export.merged import merged_tensors
from gemma_tune.export.transformers_folder import write_weights
from gemma_tune.export.verify import ArtifactDiffers
from gemma_tune.models.classifier import scores
from gemma_tune.models.unwrap import language_part

_ROWS = 8  # pairs
# Relative to the largest score. The weights are compared to the bit elsewhere; this finds a head that is read at
# another position.
_EXACT, _ROUNDED = 1e-4, 0.1


def export(model: Any, tokenizer: Any, folder: Path, options: ExportConfig) -> None:
    """Writes weights with the adapter in them, config, and tokenizer with chat template.

    Args:
        model: The trained model, or a PeftModel around it; it is not changed.
        tokenizer: Its tokenizer.
        folder: Where to write.
        options: `dtype` and `max_shard_size`.

    Raises:
        ArtifactDiffers: What was written isn't what was to be written.
    """
    dtype, base = getattr(torch, options.dtype), language_part(model)
    config = type(base.config).from_dict(base.config.to_dict())
    config.architectures, config.dtype = [type(base).__name__], dtype
    write_weights(dict(merged_tensors(model, dtype)), config, tokenizer, folder, options)


def verify(
    folder: Path, model: Any, options: ExportConfig, train: Pairs, held_out: Pairs, batch_size: int
) -> dict[str, float]:
    """Loads the folder with plain Transformers, and compares scores; measures the held-out pairs with it.

    Args:
        folder: What `export` has written.
        model: The trained model.
        options: `dtype` of the files.
        train: The pairs trained on.
        held_out: The pairs held out, perhaps none.
        batch_size: Conversations of one forward pass.

    Returns:
        `export_score_difference` (the largest of a few conversations), and the figures of `score_pairs`.

    Raises:
        ArtifactDiffers: Scores differ by more than rounding can explain.
    """
    weight = model.get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    loaded = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=weight.dtype,
        device_map={"": str(weight.device)},
        use_safetensors=True,
        trust_remote_code=False,
    )
    part = held_out if held_out.records else train
    looked = part.dataset[:_ROWS]
    rows = [*looked["chosen_ids"], *looked["rejected_ids"]]
    ours, theirs = (scores(m, rows, tokenizer.pad_token_id, batch_size) for m in (model, loaded))
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    exact = weight.dtype == torch.float32 and options.dtype == "float32"
    if difference > (_EXACT if exact else _ROUNDED) * max(1.0, *map(abs, ours)):
        raise ArtifactDiffers(f"{folder}: not the trained model: a score differs by {difference:.3g}.")
    return {"export_score_difference": difference, **score_pairs(loaded, tokenizer, held_out, batch_size).figures}
