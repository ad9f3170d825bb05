"""Checks of values against each other and against the files on disk, without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator

from gemma_tune.config import AdapterConfig, Config, DataConfig, ExportConfig
from gemma_tune.config.data import FORMATS, LABELLED
from gemma_tune.config.methods import Kind
from gemma_tune.config.model import is_gguf
from gemma_tune.validation import own_code
from gemma_tune.validation.adapter_layers import layer_problems
from gemma_tune.validation.best import best_problems
from gemma_tune.validation.chat_and_preview import chat_problems, no_other, preview_problems
from gemma_tune.validation.evaluators import evaluator_problems
from gemma_tune.validation.gguf import gguf_problems
from gemma_tune.validation.looking import models_problems, plan_problems, push_problems, unread_keys
from gemma_tune.validation.measuring import (
    compare_problems,
    evaluate_problems,
    export_problems,
    holds_out,
    named_in_vain,
    needs_rows,
)
from gemma_tune.validation.paths import encoding_problems, missing_paths, output_dir_problems
from gemma_tune.validation.processes import process_problems
from gemma_tune.validation.quantization import grid_problems
from gemma_tune.validation.rewards import (
    label_problems,
    no_generator,
    preference_problems,
    reward_problems,
    rl_problems,
)
from gemma_tune.validation.sampling import sampling_problems
from gemma_tune.validation.schedulers import scheduler_problems
from gemma_tune.validation.serving import serve_problems, served_model_problems
from gemma_tune.validation.suggest import did_you_mean
from gemma_tune.validation.templates import template_problems
from gemma_tune.validation.tokens import new_token_problems
from gemma_tune.validation.trackers import tracker_problems
from gemma_tune.validation.trainer_options import enum_values, trainer_problems

_INITS = re.compile(r"^(true|false|gaussian|pissa|pissa_niter_[1-9]\d*|olora|loftq)$", re.IGNORECASE)
_DATA_FORMATS = ("auto", *FORMATS, LABELLED)


def _model(cfg: Config) -> Iterator[str]:
    name = cfg.model.model_name_or_path
    if not name:
        yield "model.model_name_or_path is empty: choose model=… or name a folder."
    elif is_gguf(name):
        yield from gguf_problems(cfg)
    yield from missing_paths(cfg, "model")
    yield from served_model_problems(cfg)
    yield from template_problems(cfg.model.chat_template)
    yield from new_token_problems(cfg)
    if cfg.model.per_layer_table_on_host and cfg.traits.trains and (trained_or_shared := _table_is_needed(cfg)):
        yield f"model.per_layer_table_on_host=true: {trained_or_shared}; leave it out."
    yield from _fused_layers(cfg)


def _fused_layers(cfg: Config) -> Iterator[str]:
    """What is asked of fused layers where there are none."""
    model, off = cfg.model, ""
    if cfg.train.torch_compile:
        off = "train.torch_compile=true compiles layers in their place"
        if model.fused_layers:
            yield f"model.fused_layers=true: {off}; leave one of them out."
    elif model.fused_layers is False:
        off = "it needs fused layers, which model.fused_layers=false turns off"
    if model.keep_decoded and not model.load_in_4bit and cfg.traits.trains:
        off = "no weights are in 4 bit (model.load_in_4bit=false)"
    if model.keep_decoded and off:
        yield f"model.keep_decoded=true: {off}; leave one of them out."


def _table_is_needed(cfg: Config) -> str | None:
    """Why the table of per-layer embeddings can't be kept off the GPU."""
    if cfg.adapter.peft_type == "none":
        return "with adapter=none the table is trained, where the model is"
    return "with several processes each must have all weights on its GPU" if cfg.processes > 1 else None


def _adapter(cfg: Config) -> Iterator[str]:
    a, four_bit = cfg.adapter, cfg.model.load_in_4bit
    init = str(a.init_lora_weights)
    if a.peft_type == "none":
        if four_bit:
            yield (
                "model.load_in_4bit=true with adapter=none: 4-bit weights can't be trained themselves; "
                "add adapter=lora, or set model.load_in_4bit=false."
            )
        for key, default in vars(AdapterConfig()).items():
            if getattr(a, key) != default:
                yield f"adapter.{key} has no effect with adapter=none; add adapter=lora, or leave it out."
        return
    if not _INITS.match(init):
        names = ("true", "false", "gaussian", "pissa", "pissa_niter_16", "olora", "loftq")
        yield f"adapter.init_lora_weights={init}: not one of {', '.join(names)}.{did_you_mean(init, names)}"
    if four_bit and init.startswith(("pissa", "olora")):
        yield (
            f"adapter.init_lora_weights={init} takes the start of the adapter out of the weights, and 4-bit weights "
            "can't give it exactly; use adapter=loftq, or recipe=lora_sft."
        )
    if init == "loftq" and not four_bit:
        yield "adapter.init_lora_weights=loftq makes up for 4-bit rounding; add model.load_in_4bit=true (qlora_sft)."
    if a.use_dora and init.startswith(("pissa", "olora", "loftq")):
        yield f"adapter.use_dora=true with init_lora_weights={init}: PEFT can't save this pair exactly; drop one."
    modules = a.target_modules
    names_ok = isinstance(modules, list) and modules and all(isinstance(m, str) for m in modules)
    if not (isinstance(modules, str) and modules) and not names_ok:
        yield "adapter.target_modules must be all-linear, a regular expression or a list of module names."
    for m in modules if isinstance(modules, list) else [modules]:
        if m in ("lm_head", "embed_tokens"):
            yield f"adapter.target_modules: {m} is tied (head and embedding are one matrix); leave it out."
    yield from layer_problems(a)
    if a.target_parameters and cfg.traits.quantizes and cfg.quant.by_channel:
        yield (
            f"adapter.target_parameters with quant.grid={cfg.quant.grid}: experts have no codes there, stay in 16 bit "
            "and are not trained; leave it out."
        )


def _data(cfg: Config) -> Iterator[str]:
    d = cfg.data
    if ":" not in d.format and d.format not in _DATA_FORMATS:
        yield (
            f"data.format={d.format}: not one of {', '.join(_DATA_FORMATS)}, nor path/to/file.py:function."
            f"{did_you_mean(d.format, _DATA_FORMATS)}"
        )
    yield from encoding_problems(d.encoding)
    yield from _sets(d, trains=cfg.traits.reads_training_set or d.validation_split_percentage > 0)
    yield from missing_paths(cfg, "data")
    named = d.named()
    for key in named:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", key.split(".", 2)[-1]):
            yield f"{key}: a name has letters, digits, - and _ only; it becomes part of the names of metrics."
    shipped = {key for key, path in named.items() if path.startswith("assets://")}
    if shipped and shipped != set(named):
        yield (
            f"{', '.join(sorted(set(named) - shipped))} and {', '.join(sorted(shipped))}: some are yours and some are "
            "the sample's; choose data=auto and name your own files."
        )
    held_out = [k for k in ("validation_file", "validation_split", "validation_split_percentage") if getattr(d, k)]
    if len(held_out) > 1:
        yield f"{' and '.join(f'data.{k}' for k in held_out)} are both set; choose one (null or 0)."
    if d.streaming and cfg.train.max_steps < 1 and not cfg.traits.measures:
        yield "data.streaming=true has no end of an epoch: set train.max_steps."
    if d.streaming and d.validation_split_percentage and not d.max_eval_samples:
        yield "data.streaming=true with data.validation_split_percentage: set data.max_eval_samples, too."
    if d.streaming and cfg.train.extra.get("dataloader_num_workers"):
        yield "data.streaming=true reads rows in the main process: leave out train.extra.dataloader_num_workers."
    several = [name for name, file in d.train_files.items() if file]
    for key, counts in (
        ("shuffle_buffer_size", d.streaming), ("stopping_strategy", len(several) > 1),
        ("system_column", bool(d.prompt_column and (d.completion_column or d.prompts_only))),
        *((key, d.format == "chat_log") for key in _CHAT_LOG),
    ):  # fmt: skip
        if getattr(d, key) != getattr(DataConfig(), key) and not counts:
            yield f"data.{key} has no effect here; leave it out."
    only_rewards = set(cfg.eval.evaluators) <= {"rewards"} and set(cfg.eval.during_training) <= {"rewards"}
    if d.prompts_only and not (cfg.traits.answers_prompts and only_rewards):
        yield "data.prompts_only=true: rows without answers are for rewards (recipe=grpo, eval.evaluators=[rewards])."
    if d.enable_thinking and not cfg.traits.answers_prompts:
        yield f"data.enable_thinking=true has no effect with recipe={cfg.recipe}; leave it out."
    if d.format == "columns":
        for key in ("prompt_column", *(() if d.prompts_only else ("completion_column",))):
            if not getattr(d, key):
                yield f"data.{key} is not set: data=columns needs the name of that field in your rows."


_CHAT_LOG = ("conversation_column", "sender_column", "message_column", "time_column", "assistant_senders")


def _sets(d: DataConfig, trains: bool) -> Iterator[str]:
    """Problems of the training set: it must be named exactly once."""
    several = {k: v for k, v in d.train_files.items() if v}
    if sum(map(bool, (d.train_file, several, d.dataset_name, d.generator))) > 1:
        yield (
            "data.train_file, data.train_files, data.dataset_name, data.generator: set one of them; the sample's go "
            "with data=auto."
        )
    if not d.generator:
        for key in ("generator_options", "generator_seed"):
            if getattr(d, key) != getattr(DataConfig(), key):
                yield f"data.{key} has no effect without data.generator; set it, too, or leave this out."
    if trains and not d.train_file and not several and not d.dataset_name and not d.generator:
        yield "data.train_file is empty: name the file to train on."
    if not d.dataset_name:
        for key in ("dataset_config_name", "split", "validation_split", "revision"):
            if getattr(d, key) != getattr(DataConfig(), key):
                yield f"data.{key} has no effect without data.dataset_name; set it, too, or leave this out."
    for name, weight in d.weights.items():
        if name not in several:
            yield f"data.weights.{name}: there is no data.train_files.{name}.{did_you_mean(name, list(several))}"
        if not 0 < weight < math.inf:
            yield f"data.weights.{name} must be a number above 0, not {weight:g}; null as its file leaves a set out."


def _train(cfg: Config) -> Iterator[str]:
    t = cfg.train
    for key, value, enum in (
        ("train.optim", t.optim, "OptimizerNames"),
        ("train.lr_scheduler_type", t.lr_scheduler_type, "SchedulerType"),
    ):
        names = enum_values(enum)
        if names and value not in names:
            yield f"{key}={value}: Transformers has no such name.{did_you_mean(value, names)} ({', '.join(names)})"
    if t.max_steps == 0:
        yield "train.max_steps=0 would train nothing; use -1 for whole epochs, or dry_run=true."
    if t.max_seconds == 0:
        yield f"train.max_time={t.max_time}: write a time as 2h, 90m, 1h30m or 45s."
    d = cfg.data
    yield from sampling_problems(cfg)
    if t.eval_steps and not holds_out(d) and {"held_out_loss", "kl", "preference"} & set(cfg.eval.during_training):
        yield (
            "train.eval_steps is set, but no rows are held out: set data.validation_file or "
            "data.validation_split_percentage."
        )
    if t.eval_steps and not cfg.eval.during_training:
        yield "train.eval_steps is set, but eval.during_training names no evaluator; name one, or leave eval_steps out."
    yield from best_problems(cfg)


def _export(cfg: Config) -> Iterator[str]:
    if not re.fullmatch(r"\d+([KMGT]i?B)", cfg.export.max_shard_size):
        yield f"export.max_shard_size={cfg.export.max_shard_size}: write a number and a unit, for example 5GB or 500MB."
    if not cfg.traits.quantizes and cfg.export.quality_samples != ExportConfig().quality_samples:
        yield f"export.quality_samples has no effect with recipe={cfg.recipe}; leave it out."
    kept = cfg.train.save_steps or cfg.train.metric_for_best_model
    if not cfg.export.formats and cfg.adapter.peft_type == "none" and not kept:
        yield "export=none with adapter=none and no train.save_steps would keep no weights; use export=merged."


_Check = Callable[[Config], Iterator[str]]
_TRAINING: tuple[_Check, ...] = (
    _model,
    _adapter,
    _data,
    _train,
    trainer_problems,
    scheduler_problems,
    evaluator_problems,
    grid_problems,
    _export,
)
# The checks of each kind of method; groups that have no effect on it are not checked.
_CHECKS: dict[Kind, tuple[_Check, ...]] = {
    Kind.CHAT: (_model, chat_problems),
    Kind.PREVIEW: (_model, _data, _train, preview_problems),
    Kind.EXPORT: (_model, export_problems, _data, evaluator_problems, grid_problems, output_dir_problems),
    Kind.MEASURE: (_model, evaluate_problems, _data, evaluator_problems, output_dir_problems),
    Kind.TRAIN: (*_TRAINING, output_dir_problems),
    Kind.DOCTOR: (),
    Kind.COPY: (own_code.copy_problems,),
    Kind.MODELS: (models_problems,),
    Kind.PLAN: (_model, plan_problems),
    Kind.SERVE: (_model, serve_problems),
    Kind.PUSH: (_model, push_problems),
}


def cross_problems(cfg: Config, named: Collection[str] = ()) -> list[str]:
    """All problems that a single value can't show.

    Args:
        cfg: The configuration.
        named: The groups and keys that the user has named.
    """
    if problem := own_code.method_problem(cfg):  # all else depends on what the method is
        return [problem]
    method = cfg.traits
    if unread := list(unread_keys(cfg, named)):
        return [*unread, *no_other(cfg)]
    groups: list[_Check] = [no_other, reward_problems, no_generator, label_problems, tracker_problems, process_problems]
    groups += own_code.CHECKS
    if method.kind is Kind.COMPARE:
        groups += [compare_problems, *([_data, evaluator_problems] if needs_rows(cfg) else []), output_dir_problems]
    else:
        groups += _CHECKS[method.kind]
    groups += [rl_problems] if method.rewarded else [preference_problems] if method.compares_answers else []
    return [*(problem for group in groups for problem in group(cfg)), *named_in_vain(cfg, named)]
