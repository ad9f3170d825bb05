"""Values that hang on others: those left null are filled in here, before a run begins. Imports no torch."""

from __future__ import annotations

import json

from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.models.source import find_source

# The published checkpoints are 640 wide and more. Narrower ones, as the embedded model is, take and need higher rates.
_NARROW = 512
_RATE_ADAPTERS, _RATE_ALL, _RATE_NARROW = 2e-4, 2e-5, 2e-3
_ANSWERED, _ANSWERED_NARROW = 8, 64


def fill_in(cfg: Config) -> None:
    """Sets `model.dtype`, `train.learning_rate` and `eval.batch_size` where they are null."""
    every_weight = cfg.adapter.peft_type == "none"
    narrow = _width(cfg) < _NARROW
    if cfg.model.dtype is None:
        cfg.model.dtype = "float32" if every_weight and cfg.method != "chat" else "bfloat16"
    if cfg.train.learning_rate is None:
        wide = _RATE_ALL if every_weight else _RATE_ADAPTERS
        cfg.train.learning_rate = _RATE_NARROW if narrow else wide
    if cfg.eval.batch_size is None:
        cfg.eval.batch_size = _ANSWERED_NARROW if narrow else _ANSWERED


def _width(cfg: Config) -> int:
    """`hidden_size` of a local checkpoint; of one that isn't here, or can't be read, the width of a published one."""
    try:
        folder = find_source(cfg.model).folder
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
        return int((config.get("text_config") or config).get("hidden_size", _NARROW))
    except (UserError, OSError, ValueError, AttributeError):
        return _NARROW  # said where the model is loaded
