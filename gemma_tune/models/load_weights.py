"""Loads the model, with a generation config that stops where chats end.

PEFT, which imports bitsandbytes and torch's compiler, is imported where there is an adapter or a tower, and not before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import PreTrainedModel

from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.adapters.token_rows import grow_embedding, ids_of
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.kernels.label_positions import compute_all_positions
from gemma_tune.models.language_part import load_language_part
from gemma_tune.models.load import check_vocabulary, load_config, set_stop_tokens, stop_token_ids
from gemma_tune.models.source import Source
from gemma_tune.models.towers.tower_names import trains_towers
from gemma_tune.models.towers.towers import Towers, open_towers, remember_towers


def load_base(model: ModelConfig, source: Source, tokenizer: Any, packed: bool = False) -> PreTrainedModel:
    """The language part on its device, in its dtype, 4-bit where asked for, with a generation config that stops.

    Args:
        model: What is asked for.
        source: Where it is.
        tokenizer: Its tokenizer.
        packed: Whether weights that are stored in 4 bit are accepted (compressed-tensors: `export=w4a16`).

    Raises:
        UserError: Not loadable, weights missing in the files or too many, or stored in a quantized form.
    """
    config = load_config(source)
    rows = [*ids_of(tokenizer, source.added_tokens), *_rows_of_adapter(source)]
    if rows and max(rows) >= len(tokenizer):
        raise UserError(
            f"{source.adapter}: it trains row {max(rows)} of the embedding, and its tokenizer has only "
            f"{len(tokenizer)} tokens; put the tokenizer of its training beside it."
        )
    loaded = load_language_part(model, source, config, FAMILIES[config.model_type].language_class, packed=packed)
    if FAMILIES[config.model_type].has_towers:
        remember_towers(loaded, partial(_towers, model, source, config))
        if source.adapter is not None and trains_towers(source.adapter):
            open_towers(loaded)  # exports take what was trained from them
    elif source.adapter is not None:
        from gemma_tune.models.towers.stored_towers import check_stored_towers

        check_stored_towers(source.adapter, config)
    if not model.layers_at_labels:
        compute_all_positions(loaded)
    grow_embedding(loaded, rows)
    check_vocabulary(loaded, [*stop_token_ids(tokenizer), tokenizer.bos_token_id, tokenizer.pad_token_id])
    set_stop_tokens(loaded, tokenizer)
    return loaded


def load_model(model: ModelConfig, source: Source, tokenizer: Any, packed: bool = False) -> Any:
    """The language part, with its adapter if there is one, for inference.

    Args:
        model: What is asked for.
        source: Where it is.
        tokenizer: Its tokenizer.
        packed: See `load_base`.

    Raises:
        UserError: As `load_base`, or an adapter that doesn't fit.
    """
    loaded = load_base(model, source, tokenizer, packed)
    if source.adapter is None:
        return loaded.eval()
    from gemma_tune.models.adapters.adapter_files import load_frozen_adapter

    return load_frozen_adapter(loaded, source.adapter)


def _rows_of_adapter(source: Source) -> list[int]:
    if source.adapter is None:
        return []
    from gemma_tune.models.adapters.adapter_config import stored_rows

    return stored_rows(source.adapter)


def _towers(model: ModelConfig, source: Source, config: Any, language: Any) -> Towers:
    from gemma_tune.models.towers.tower_files import load_towers

    return load_towers(model, source, config, language)
