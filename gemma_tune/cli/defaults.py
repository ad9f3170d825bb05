"""Values that depend on others: those left null are filled in here, before a run begins. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from gemma_tune.cli.user_overrides import UserOverrides
from gemma_tune.config import Config, ModelConfig, QuantConfig
from gemma_tune.config.export import ADAPTERS, CODED
from gemma_tune.config.methods import METHODS, Kind, named_method
from gemma_tune.config.model import TRAIN_LORA, TRAIN_NOTHING, is_gguf
from gemma_tune.errors import UserError
from gemma_tune.models.family import NARROW
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import has_results, is_run_with_results, model_of_run, resolve
from gemma_tune.run.read_once import read_json
from gemma_tune.validation.processes import resolve_processes

# Sequences of a forward pass where several examples are packed into one.
_BATCH_PACKED = 2
# Prompts answered at once, wide and narrow.
_ANSWERED = (8, 64)
_COMPLETION_TOKENS = (256, 32)
# Learning rates of trained towers, wide and narrow
_TOWERS = (5e-6, 1e-4)
# Otherwise a model of 4B would answer for an hour before training.
_ANSWERS = 200


def resolve_defaults(cfg: Config) -> None:
    """Sets what is null: the type of the weights, the rate, the batches, the order of the rows.

    What has no effect stays null, so that the stored configuration passes the checks, too.
    """
    method, t = cfg.traits, cfg.train
    if method.run_folder:
        resolve_processes(cfg.launch)
    if method.kind is Kind.COMPARE and all(map(is_run_with_results, cfg.compare.models)):
        return
    if method.kind is not Kind.COMPARE:  # each of several models has its own
        _take_sight(cfg.model)
    every_weight = cfg.adapter.peft_type == "none"
    # Narrow models, as the embedded one is, take and need higher rates, and small batches
    narrow = all(_width(model) < NARROW for model in _models(cfg))
    in_llama_cpp = is_gguf(cfg.model.model_name_or_path) and "kl" not in cfg.eval.evaluators
    if cfg.model.dtype is None and not in_llama_cpp:
        trains_all = every_weight and method.reads_training_set
        cfg.model.dtype = "float32" if trains_all or method.float32 else "bfloat16"
    if cfg.eval.batch_size is None:
        cfg.eval.batch_size = _ANSWERED[narrow]
    if cfg.eval.max_samples is None and not narrow and not method.rewarded:  # which is measured on all rows
        cfg.eval.max_samples = _ANSWERS
    if method.rewarded and t.max_completion_length is None:
        t.max_completion_length = _COMPLETION_TOKENS[narrow]
    if method.rates is None:
        return
    if t.learning_rate is None:
        t.learning_rate = (method.rates.full if every_weight else method.rates.adapter)[narrow]
    if t.towers_learning_rate is None and cfg.model.train_towers != TRAIN_NOTHING and method.media:
        t.towers_learning_rate = t.learning_rate if cfg.model.train_towers == TRAIN_LORA else _TOWERS[narrow]
    if t.packing is None and method.packs:
        t.packing = not narrow and not t.train_sampling_strategy.startswith("group_by_")
    batch = _BATCH_PACKED if t.packing and not narrow else method.batch[narrow]
    second = cfg.quant.stage2
    if method.stages and second.per_device_train_batch_size is None:
        on_grid = batch if not narrow else METHODS[method.stages[-1]].batch[narrow]
        second.per_device_train_batch_size = t.per_device_train_batch_size or on_grid
    if t.per_device_train_batch_size is None:
        group = t.num_generations if method.rewarded else 1
        t.per_device_train_batch_size = max(batch // group, 1) * group


def without_idle_grid(tree: dict[str, Any], named: UserOverrides) -> dict[str, Any]:
    """The configuration without the quantization format of an export that was asked for files without codes alone.

    `recipe=export` rounds to int4 by itself. Who asks it for a float16 GGUF file or for the adapter wants the weights
    as they are; the int4
    numbers in such a file are had by naming `quant`, or beside a file that holds their codes.

    Args:
        tree: The composed configuration, its values checked; it is not changed.
        named: What the user has named.
    """
    method, formats = named_method(tree), tree["export"]["formats"]
    if method is None or method.kind is not Kind.EXPORT or "quant" in named.groups or named.has("quant"):
        return tree
    if set(formats) & {*CODED} or not any(name.startswith("gguf_") or name in ADAPTERS for name in formats):
        return tree
    return {**tree, "quant": asdict(QuantConfig())}


def _models(cfg: Config) -> list[ModelConfig]:
    """The models that the run is of."""
    if cfg.traits.kind is not Kind.COMPARE:
        return [cfg.model]
    return [replace(cfg.model, model_name_or_path=_measured(name)) for name in cfg.compare.models]


def _measured(name: str) -> str:
    """The model that a run has measured, by its config.yaml (its folder may hold none); any other name as it is."""
    stored = model_of_run(resolve(name)) if has_results(name) else None
    return name if stored is None else stored


def _take_sight(model: ModelConfig) -> None:
    """Sets how images are prepared and attended to: below what is asked for, as in the run that is the model."""
    try:
        source = find_source(model)
    except (UserError, OSError, ValueError):  # said where the model is loaded
        return
    model.images_kwargs = dict(source.images_kwargs)
    model.image_attention = model.image_attention or source.image_attention


def _width(model: ModelConfig) -> int:
    """`hidden_size` of a local checkpoint; of one that isn't here, or can't be read, the width of a published one."""
    try:
        source = find_source(model)
        if source.gguf is not None:
            from gemma_tune.models.gguf_header import read_gguf_header

            return read_gguf_header(source.gguf).width
        folder = source.folder
        config = read_json(folder / "config.json") if folder else {}
        return int((config.get("text_config") or config).get("hidden_size", NARROW))
    except (UserError, OSError, ValueError, AttributeError):
        return NARROW  # said where the model is loaded
