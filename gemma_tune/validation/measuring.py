"""Checks of the recipes that measure and train nothing: evaluate and compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from gemma_tune.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from gemma_tune.config.eval import ON_ANSWERS
from gemma_tune.config.methods import Kind, Reads
from gemma_tune.config.model import is_gguf
from gemma_tune.run.paths import folder_status, has_results, is_bundled, is_run_with_results, resolve
from gemma_tune.validation.paths import missing_paths
from gemma_tune.validation.schema import overlap

# Keys of `train` that they use: the length of validation rows, and the batch size.
_MEASURE_WITH = ("max_length", "per_device_eval_batch_size")
# The default model of configs/config.yaml.
_BEGUN_FROM = "assets://tiny"


def evaluate_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=evaluate` can't do."""
    yield from _trains_nothing(cfg)
    samples = cfg.eval.num_samples and holds_out(cfg.data)
    if not cfg.eval.evaluators and not samples:
        yield "eval.evaluators is empty, so there is nothing to measure; name one, or use eval=default."
    yield from _measures_nothing(cfg)


def export_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=export` can't do."""
    yield from _trains_nothing(cfg)


def compare_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=compare` can't do."""
    yield from _trains_nothing(cfg)
    models, names = cfg.compare.models, cfg.compare.names
    if len(models) < 2:
        yield "compare.models names fewer than two models; for example compare.models=[runs/a,runs/b]."
    if names and len(names) != len(models):
        yield f"compare.names has {len(names)} names for {len(models)} models; give one to each, or leave it out."
    folders = Counter(str(resolve(m).resolve()) if resolve(m).is_dir() else m for m in models)
    for model in (m for m, count in folders.items() if count > 1):
        yield f"compare.models: {model} is named twice; name each model once."
    for name, count in Counter(names).items():
        if count > 1:
            yield f"compare.names: {name} is used {count} times; give each model its own name."
    for model in models:
        if is_gguf(model):
            yield f"compare.models: {model} is a GGUF file: measure it with recipe=evaluate, and name that run."
        elif has_results(model) and not is_run_with_results(model):
            yield (
                f"compare.models: {model} is a run that has not finished (its status is "
                f"{folder_status(resolve(model)) or 'unknown'}), so what it has measured isn't taken; finish it, or "
                f"name the weights that it has left, to measure them now: {model}/adapter or {model}/export/merged."
            )
    yield from missing_paths(cfg, "compare")
    if cfg.model.model_name_or_path != _BEGUN_FROM:
        yield "model.model_name_or_path has no effect with recipe=compare; name the model in compare.models."
    if needs_rows(cfg):
        if not cfg.eval.evaluators:
            yield "eval.evaluators is empty, so there is nothing to compare; name one, or use eval=default."
        yield from _measures_nothing(cfg)


def named_in_vain(cfg: Config, named: Collection[str]) -> Iterator[str]:
    """What the user has named for a measurement where none is made; what shipped files and runs say is no mistake."""
    if cfg.traits.kind is not Kind.COMPARE or needs_rows(cfg):
        return
    if keys := [key for key in _set_of_measuring(cfg) if any(overlap(key, name) for name in named)]:
        yield (
            f"{', '.join(keys)}: without effect, since every one of compare.models is a run that has measured itself; "
            "leave this out, or name weights to measure them now (runs/a/adapter, runs/a/export/merged)."
        )


def needs_rows(cfg: Config) -> bool:
    """Whether a model is measured now, so that data and evaluators are needed."""
    if cfg.traits.reads is Reads.NOTHING:
        return False
    return cfg.traits.kind is not Kind.COMPARE or not all(is_run_with_results(model) for model in cfg.compare.models)


def _trains_nothing(cfg: Config) -> Iterator[str]:
    if cfg.adapter.peft_type != "none":
        yield f"adapter has no effect with recipe={cfg.recipe}, which trains nothing; name the adapter's folder."
    for key, default in vars(TrainConfig()).items():
        if key not in _MEASURE_WITH and getattr(cfg.train, key) != default:
            yield f"train.{key} has no effect with recipe={cfg.recipe}, which trains nothing; leave it out."


def holds_out(data: DataConfig) -> bool:
    """Whether there is a validation set."""
    return bool(data.validation_file or data.validation_split or data.validation_split_percentage)


def _measures_nothing(cfg: Config) -> Iterator[str]:
    """Evaluators without any rows: they would silently measure nothing. A model that is there brings its run's rows."""
    if any(missing_paths(cfg, "compare" if cfg.compare.models else "model")):
        return
    needs = {
        "held_out_loss": (holds_out(cfg.data), "data.validation_file"),
        "kl": (holds_out(cfg.data), "data.validation_file"),
        "preference": (holds_out(cfg.data), "data.validation_file"),
        **dict.fromkeys(ON_ANSWERS, (any(cfg.data.test_files.values()), "data.test_files.mine")),
    }
    evaluators = cfg.eval.evaluators
    if evaluators and not any(needs.get(name, (True, ""))[0] for name in evaluators):
        keys = dict.fromkeys(needs[name][1] for name in evaluators)
        yield (
            f"eval.evaluators=[{','.join(evaluators)}]: nothing would be measured, since these work on rows and there "
            f"are none; set {' or '.join(keys)}{_sample(cfg)}."
        )


def _sample(cfg: Config) -> str:
    """The way to the bundled sample, on which a model of the user's is measured only where that is asked for."""
    models = cfg.compare.models or [cfg.model.model_name_or_path]
    bundled = all(map(is_bundled, models)) and cfg.model.base_url is None
    return "" if bundled else " to a file of yours, or choose data=sample for the bundled sample"


def _set_of_measuring(cfg: Config) -> list[str]:
    """The keys of what is measured, and how, that differ from their defaults."""
    shipped = {key.split(".")[1] for key, name in cfg.data.named().items() if name.startswith("assets://")}
    return [
        *_differing(cfg.model, ModelConfig(), "model", ["model_name_or_path"]),
        *_differing(cfg.data, DataConfig(), "data", shipped if cfg.data.format != "messages" else {*shipped, "format"}),
        *_differing(cfg.eval, EvalConfig(), "eval"),
        *(f"train.{key}" for key in _MEASURE_WITH if getattr(cfg.train, key) != getattr(TrainConfig(), key)),
    ]


def _differing(values: Any, defaults: Any, prefix: str, but: Collection[str] = ()) -> Iterator[str]:
    for f in fields(values):
        value, default = getattr(values, f.name), getattr(defaults, f.name)
        if is_dataclass(value):
            yield from _differing(value, default, f"{prefix}.{f.name}")
        elif value != default and f.name not in but:
            yield f"{prefix}.{f.name}"
