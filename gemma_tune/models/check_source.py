"""What is refused of a checkpoint, and of an adapter on it, before a weight is loaded."""

from __future__ import annotations

from typing import Any

from gemma_tune.config import AdapterConfig, ModelConfig
from gemma_tune.config.adapter import ALL_LINEAR
from gemma_tune.models.four_bit import check_trained_on
from gemma_tune.models.language_part import check_files
from gemma_tune.models.source import Source


def check_source(
    model: ModelConfig,
    adapter: AdapterConfig,
    source: Source,
    config: Any,
    trains: bool,
    merges: bool = False,
    packed: bool = False,
) -> None:
    """Refuses, before a weight is loaded, files that lack some, and an adapter or layers to adapt that don't fit.

    Args:
        model: How the base is to be loaded.
        adapter: What is to be trained, where `trains`.
        source: Names the base, and the adapter on it.
        config: The base's configuration.
        trains: Whether an adapter is trained: the stored one, or a new one where that is merged or there is none.
        merges: Whether the stored adapter is merged into the weights.
        packed: Whether weights that are stored in 4 bit are accepted, though they are trained.

    Raises:
        UserError: See `check_files` and `attach`.
    """
    if packed:
        check_trained_on(source, config)
    check_files(model, source, config, packed=packed or not (trains or merges))
    if source.adapter is None and (not trains or _fits_any(adapter)):
        return
    # Imports PEFT, and that bitsandbytes and torch's compiler
    from gemma_tune.models.adapters.adapter import check_adapter

    check_adapter(adapter, source, config, trains, merges)


def _fits_any(adapter: AdapterConfig) -> bool:
    """Whether an adapter fits every model, or there is none: it names no layer, block, row or pattern of its own."""
    named = (
        adapter.target_parameters, adapter.layers_to_transform, adapter.rank_pattern, adapter.alpha_pattern,
        adapter.trainable_token_indices, adapter.modules_to_save,
    )  # fmt: skip
    return adapter.peft_type == "none" or (adapter.target_modules == ALL_LINEAR and not any(named))
