"""Loads a model to quantize, for `recipe=qat` and `recipe=export`: full weights in float32, an adapter merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gemma_tune.chat import Rendered
from gemma_tune.config import ModelConfig
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import Source, find_source
from gemma_tune.run.paths import resolve

# Compared on where there are no rows
_TEXT = "The light in the kitchen goes on at seven, and 24 of the 30 letters are read before noon."


def find_full_weights(model: ModelConfig) -> Source:
    """The source of the full weights. Of a run that exported merged weights these are taken: the run has verified them.

    Raises:
        UserError: As `find_source`.
    """
    merged = resolve(model.model_name_or_path) / "export" / "merged"
    if (merged / "config.json").is_file():
        model = replace(model, model_name_or_path=str(merged))
    return find_source(model)


def load_float32(
    model: ModelConfig, source: Source, tokenizer: Any, rows: Sequence[Rendered], packed: bool = False
) -> Any:
    """The language part in float32, every weight trainable; an adapter of the source is merged into it.

    Args:
        model: What is asked for.
        source: Where it is.
        tokenizer: Its tokenizer.
        rows: Rows on which the merged model is compared with the adapter's own forward pass.
        packed: Whether weights that are stored in 4 bit are accepted, and decoded (compressed-tensors).

    Raises:
        UserError: As `load_model`.
        MergeDiffers: The merged weights are another model.
    """
    loaded = load_model(model, source, tokenizer, packed)
    if source.adapter is not None:
        from gemma_tune.models.adapters.merging import ROWS, merge  # imports PEFT

        ids = [row.without_media for row in rows[:ROWS]] or [tokenizer(_TEXT).input_ids]
        loaded = merge(loaded, ids, str(source.adapter))
    for parameter in loaded.parameters():
        parameter.requires_grad_(True)
    return loaded.train()
