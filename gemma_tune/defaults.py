"""Values that hang on others: those left null are filled in here, before a run begins. Imports no torch."""

from __future__ import annotations

import json

from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.models.family import NARROW
from gemma_tune.models.source import find_source

# Narrow models, as the embedded one is, take and need higher rates, and small batches.
_RATE_ADAPTERS, _RATE_ADAPTERS_NARROW = 2e-4, 8e-3
_RATE_ALL, _RATE_ALL_NARROW = 2e-5, 2e-3
_BATCH, _BATCH_PACKED, _BATCH_NARROW = 8, 2, 4
_ANSWERED, _ANSWERED_NARROW = 8, 64


def fill_in(cfg: Config) -> None:
    """Sets what is null: the type of the weights, the rate, the batches, the order of the rows."""
    every_weight = cfg.adapter.peft_type == "none"
    narrow = _width(cfg) < NARROW
    if cfg.model.dtype is None:
        cfg.model.dtype = "float32" if every_weight and cfg.method != "chat" else "bfloat16"
    if cfg.train.learning_rate is None:
        if every_weight:
            cfg.train.learning_rate = _RATE_ALL_NARROW if narrow else _RATE_ALL
        else:
            cfg.train.learning_rate = _RATE_ADAPTERS_NARROW if narrow else _RATE_ADAPTERS
    if cfg.train.packing is None:
        cfg.train.packing = not narrow and cfg.train.train_sampling_strategy != "group_by_length"
    if cfg.train.per_device_train_batch_size is None:
        several = _BATCH_PACKED if cfg.train.packing else _BATCH
        cfg.train.per_device_train_batch_size = _BATCH_NARROW if narrow else several
    if cfg.eval.batch_size is None:
        cfg.eval.batch_size = _ANSWERED_NARROW if narrow else _ANSWERED


def _width(cfg: Config) -> int:
    """`hidden_size` of a local checkpoint; of one that isn't here, or can't be read, the width of a published one."""
    try:
        folder = find_source(cfg.model).folder
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
        return int((config.get("text_config") or config).get("hidden_size", NARROW))
    except (UserError, OSError, ValueError, AttributeError):
        return NARROW  # said where the model is loaded
