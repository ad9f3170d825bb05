"""Values that hang on others: those left null are filled in here, before a run begins. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import replace

from gemma_tune.config import Config, ModelConfig
from gemma_tune.config.model import is_gguf
from gemma_tune.errors import UserError
from gemma_tune.models.family import NARROW
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import has_results, is_run_with_results, model_of_run, resolve

# Narrow models, as the embedded one is, take and need higher rates, and small batches.
_RATE_ADAPTERS, _RATE_ADAPTERS_NARROW = 2e-4, 8e-3
_RATE_ALL, _RATE_ALL_NARROW = 2e-5, 2e-3
_BATCH, _BATCH_PACKED, _BATCH_NARROW = 8, 2, 4
# On the grid the gradient is noisier: batches of 4 took back half of what batches of 8 do.
_BATCH_GRID_NARROW = 8
_ANSWERED, _ANSWERED_NARROW = 8, 64
_TRAIN_NOTHING = ("chat", "evaluate", "compare", "export")
_IN_FLOAT32 = ("qat", "export")
_RATE_GRID, _RATE_GRID_NARROW = 1e-5, 1e-4
_RATE_GRID_ADAPTERS, _RATE_GRID_ADAPTERS_NARROW = 1e-4, 1e-3
# By method: every weight, wide and narrow; adapters, wide and narrow.
_RATES = {
    "rl": ((1e-6, 2e-4), (1e-5, 2e-3)),
    "dpo": ((1e-6, 5e-4), (1e-5, 2e-3)),
    "reward_model": ((1e-5, 3e-4), (1e-4, 2e-3)),
}
# Completions, or pairs, of one forward pass: wide and narrow.
_FEW = {"rl": (8, 256), "dpo": (8, 4), "reward_model": (8, 4)}
_COMPLETION_TOKENS, _COMPLETION_TOKENS_NARROW = 256, 32
# So that a model of 4B doesn't answer for an hour before it is trained.
_ANSWERS = 200


def fill_in(cfg: Config) -> None:
    """Sets what is null: the type of the weights, the rate, the batches, the order of the rows.

    What has no effect stays null, so that the stored configuration passes the checks, too.
    """
    if cfg.method == "compare" and all(map(is_run_with_results, cfg.compare.models)):
        return
    every_weight = cfg.adapter.peft_type == "none"
    narrow = all(_width(model) < NARROW for model in _models(cfg))
    in_llama_cpp = is_gguf(cfg.model.model_name_or_path) and "kl" not in cfg.eval.evaluators
    if cfg.model.dtype is None and not in_llama_cpp:
        trains_all = every_weight and cfg.method not in _TRAIN_NOTHING
        cfg.model.dtype = "float32" if trains_all or cfg.method in _IN_FLOAT32 else "bfloat16"
    if cfg.eval.batch_size is None:
        cfg.eval.batch_size = _ANSWERED_NARROW if narrow else _ANSWERED
    if cfg.eval.max_samples is None and not narrow and cfg.method != "rl":  # which is measured on all rows
        cfg.eval.max_samples = _ANSWERS
    if cfg.method == "rl" and cfg.train.max_completion_length is None:
        cfg.train.max_completion_length = _COMPLETION_TOKENS_NARROW if narrow else _COMPLETION_TOKENS
    if cfg.method in _TRAIN_NOTHING:
        return
    if cfg.train.learning_rate is None:
        if cfg.method == "qat" and every_weight:
            cfg.train.learning_rate = _RATE_GRID_NARROW if narrow else _RATE_GRID
        elif cfg.method in _RATES:
            cfg.train.learning_rate = _RATES[cfg.method][not every_weight][narrow]
        elif cfg.method == "qat":
            cfg.train.learning_rate = _RATE_GRID_ADAPTERS_NARROW if narrow else _RATE_GRID_ADAPTERS
        elif every_weight:
            cfg.train.learning_rate = _RATE_ALL_NARROW if narrow else _RATE_ALL
        else:
            cfg.train.learning_rate = _RATE_ADAPTERS_NARROW if narrow else _RATE_ADAPTERS
    if cfg.method in ("rl", "dpo", "reward_model"):  # nothing is packed
        if cfg.train.per_device_train_batch_size is None:
            several, group = _FEW[cfg.method][narrow], cfg.train.num_generations if cfg.method == "rl" else 1
            cfg.train.per_device_train_batch_size = max(several // group, 1) * group
        return
    if cfg.train.packing is None:
        cfg.train.packing = not narrow and cfg.train.train_sampling_strategy != "group_by_length"
    several = _BATCH_PACKED if cfg.train.packing else _BATCH
    on_grid = _BATCH_GRID_NARROW if narrow else several
    second = cfg.quant.stage2
    if cfg.method == "tune_to_int4" and second.per_device_train_batch_size is None:
        second.per_device_train_batch_size = cfg.train.per_device_train_batch_size or on_grid
    if cfg.train.per_device_train_batch_size is None:
        tuned = _BATCH_NARROW if narrow else several
        cfg.train.per_device_train_batch_size = on_grid if cfg.method == "qat" else tuned


def _models(cfg: Config) -> list[ModelConfig]:
    """The models that the run is of."""
    if cfg.method != "compare":
        return [cfg.model]
    return [replace(cfg.model, model_name_or_path=_measured(name)) for name in cfg.compare.models]


def _measured(name: str) -> str:
    """The model that a run has measured, by its config.yaml (its folder may hold none); any other name as it is."""
    stored = model_of_run(resolve(name)) if has_results(name) else None
    return name if stored is None else stored


def _width(model: ModelConfig) -> int:
    """`hidden_size` of a local checkpoint; of one that isn't here, or can't be read, the width of a published one."""
    try:
        source = find_source(model)
        if source.gguf is not None:
            from gemma_tune.models.gguf_header import read_gguf_header

            return read_gguf_header(source.gguf).width
        folder = source.folder
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
        return int((config.get("text_config") or config).get("hidden_size", NARROW))
    except (UserError, OSError, ValueError, AttributeError):
        return NARROW  # said where the model is loaded
