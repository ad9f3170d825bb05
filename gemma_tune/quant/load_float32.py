"""Loads a model to quantize, for `recipe=qat` and `recipe=export`: full weights in float32, an adapter merged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gemma_tune.config import ModelConfig
from gemma_tune.models.load import load_model
from gemma_tune.models.source import Source, find_source
from gemma_tune.run.paths import resolve


def find_full_weights(model: ModelConfig) -> Source:
    """The source of the full weights. Of a run that exported merged weights these are taken: the run has verified them.

    Raises:
        UserError: As `find_source`.
    """
    merged = resolve(model.model_name_or_path) / "export" / "merged"
    if (merged / "config.json").is_file():
        model = replace(model, model_name_or_path=str(merged))
    return find_source(model)


def load_float32(model: ModelConfig, source: Source, tokenizer: Any) -> Any:
    """The language part in float32, every weight trainable; an adapter of the source is merged into it.

    Raises:
        UserError: As `load_model`.
    """
    loaded = load_model(model, source, tokenizer)
    if source.adapter is not None:
        loaded = loaded.merge_and_unload()
    for parameter in loaded.parameters():
        parameter.requires_grad_(True)
    return loaded.train()
