"""`train.extra.<name>` against the trainer's own dataclass, read as text: importing it would import torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_tune.config import Config, TrainConfig
from gemma_tune.config.methods import TRAINERS
from gemma_tune.config.model import TRAIN_LORA, TRAIN_NOTHING
from gemma_tune.errors import quoted
from gemma_tune.validation.suggest import INSTEAD, OTHER_TOOLS, did_you_mean

# Options of the trainer that a key of ours already sets, or that a user may not set.
DECIDED = {
    "load_best_model_at_end": "set train.metric_for_best_model",
    "restore_callback_states_from_checkpoint": "it is set where train.early_stopping_patience is",
    "output_dir": "set output_dir (without train.)",
    "seed": "set seed (without train.)",
    "data_seed": "set seed (without train.)",
    "run_name": "set tracker.name",
    "project": "set tracker.project",
    "report_to": "choose tracker=wandb, tensorboard, mlflow, trackio or none",
    "use_cpu": "set model.device=cpu",
    "fp16": "float16 overflows on Gemma; leave it out (train.bf16 for mixed precision)",
    "fp16_full_eval": "float16 overflows on Gemma; leave it out",
    "logging_nan_inf_filter": "it hides NaN losses and is always off here",
    "save_strategy": "set train.save_steps",
    "eval_strategy": "set train.eval_steps",
    "logging_strategy": "set train.logging_steps",
    "model_init_kwargs": "set the keys of model",
    "reward_weights": "set the weights of reward",
    "chat_template_kwargs": "prompts are rendered before the trainer sees them",
    "log_completions": "completions are kept in eval/completions.jsonl",
    "ref_model": "the reference is the initial model",
    "generation_batch_size": "set train.steps_per_generation",
    "sync_ref_model": "the reference is the initial model",
    "ref_model_mixup_alpha": "the reference is the initial model",
    "ref_model_sync_steps": "the reference is the initial model",
    "precompute_ref_log_probs": "its log-probabilities are always computed before training",
    "precompute_ref_batch_size": "it is train.per_device_train_batch_size",
    "truncation_mode": "answers are truncated at their end",
    "dataset_text_field": "set data.text_column",
    "dataset_kwargs": "rows are rendered and masked before the trainer sees them",
    "dataset_num_proc": "rows are rendered and masked before the trainer sees them",
    "completion_only_loss": "the mask is made from the conversation's roles",
    "assistant_only_loss": "the mask is made from the conversation's roles",
    "chat_template_path": "the template is Gemma's own",
    "eos_token": "the stop token is Gemma's <end_of_turn>",
    "pad_token": "the padding token is the tokenizer's own",
    "disable_tqdm": "the progress bar is ours",
    "remove_unused_columns": "the columns are ours",
    "do_train": "choose a recipe",
    "do_eval": "choose eval=default or eval=none",
    "do_predict": "choose a recipe",
    "hub_token": "it would stand in config.yaml; log in with `hf auth login`",
    "push_to_hub": "recipe=push uploads when you have looked at it",
    "padding_free": "set train.packing",
    "torch_compile_backend": "set train.torch_compile; its backend is inductor",
    "torch_compile_mode": "set train.torch_compile; it has one mode",
}

_NOT_HERE = DECIDED | INSTEAD

# Losses by TRL's dataclass; several of DPO's can be joined by `+`. `sft` is the plain loss of the chosen answer.
LOSSES = {
    "SFTConfig": ("nll", "dft", "chunked_nll"),
    "GRPOConfig": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "DPOConfig": (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    ),
    "KTOConfig": ("kto", "apo_zero_unpaired"),
}  # fmt: skip

# Keys in `train` that are not options of TRL.
_OURS = (
    "extra", "loss", "early_stopping_patience", "early_stopping_threshold", "max_time", "resume_data_changed",
    "towers_learning_rate", "tiled_head", "compact_batches", "profile", "prefix_caching",
    "skip_zero_advantages", "keep_freed_memory",
)  # fmt: skip

# Types that can be checked here; values of any other type are checked by the trainer's own dataclass.
_PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),),
    "dict": (dict,), "dict[str, Any]": (dict,), "dict[str, bool]": (dict,),
    "list[str]": (list,), "list[float]": (list,),
}  # fmt: skip


@functools.cache
def _class_fields(file: Path, name: str) -> dict[str, str]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return {
                item.target.id: ast.unparse(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    return {}


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    return Path(spec.origin).parent


@functools.cache
def trainer_options(name: str = "SFTConfig") -> dict[str, str]:
    """Names and type annotations of every field of one of TRL's dataclasses and of the classes it inherits from."""
    trl, transformers = _package("trl"), _package("transformers")
    return {
        **_class_fields(transformers / "training_args.py", "TrainingArguments"),
        **_class_fields(trl / "trainer" / "base_config.py", "_BaseConfig"),
        **_class_fields(trl / "trainer" / f"{name.removesuffix('Config').lower()}_config.py", name),
    }


@functools.cache
def _every_option() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in TRAINERS:
        found = trainer_options(name) | found
    return found


def trainer_of(cfg: Config) -> str:
    """TRL's dataclass of options behind a recipe; SFT's where it trains nothing."""
    return cfg.traits.trainer or TRAINERS[0]


def trainer_problems(cfg: Config) -> Iterator[str]:
    """Options that the trainer behind the recipe doesn't have."""
    name = trainer_of(cfg)
    options, default = trainer_options(name), TrainConfig()
    for key, value in vars(cfg.train).items():
        if value != getattr(default, key) and key not in _OURS and key not in options:
            yield f"train.{key} has no effect with recipe={cfg.recipe}: TRL's {name} has no such option; leave it out."
    if cfg.train.towers_learning_rate is not None and cfg.model.train_towers == TRAIN_NOTHING:
        yield (
            "train.towers_learning_rate with model.train_towers=none: no tower is trained; set projector, lora or full."
        )
    if cfg.model.train_towers == TRAIN_LORA and cfg.adapter.peft_type == "none" and cfg.traits.trains:
        yield (
            "model.train_towers=lora with adapter=none: adapters of towers are of the kind and rank that the language "
            "model's have; use an adapter (recipe=lora_sft), or set model.train_towers=full."
        )
    if cfg.train.torch_compile and cfg.traits.quantizes:
        yield f"train.torch_compile with recipe={cfg.recipe}: its layers round weights themselves; leave it out."
    yield from _scheduler_problems(cfg.train)
    known, asked = LOSSES.get(name, ()), cfg.train.loss_type
    losses = asked.split("+") if asked and name == "DPOConfig" else [asked or ""]
    for loss in losses if asked and known else ():
        if loss.strip() not in known:
            yield (
                f"train.loss_type={loss}: no loss of TRL's {name.removesuffix('Config')}Trainer; there are "
                f"{', '.join(known)}.{did_you_mean(loss, known)}"
            )
    for key, value in cfg.train.extra.items():
        if key not in options and key in _every_option():
            yield f"train.extra.{key}: TRL's {name} has no such option.{did_you_mean(key, options)}"
        elif key in options and (problem := _type_problem(key, value, options)):
            yield problem


@functools.cache
def _scheduler_options() -> dict[str, tuple[set[str], set[str]]]:
    """The options of each scheduler of Transformers, by its name: all of them, and those without a default."""
    tree = ast.parse((_package("transformers") / "optimization.py").read_text(encoding="utf-8"))
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    table: Any = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TYPE_TO_SCHEDULER_FUNCTION"
    )
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    found = {}
    for kind, function in zip(table.keys, table.values, strict=True):
        names = [a.arg for a in functions[ast.unparse(function)].args]
        needed = names[: len(names) - len(functions[ast.unparse(function)].defaults)]
        found[ast.unparse(kind).rpartition(".")[2].lower()] = ({*names} - given, {*needed} - given)
    return found


def _scheduler_problems(train: TrainConfig) -> Iterator[str]:
    """What `train.extra.lr_scheduler_kwargs` lacks, or has too much; Transformers finds it after loading."""
    name, key = train.lr_scheduler_type, "train.extra.lr_scheduler_kwargs"
    given = train.extra.get("lr_scheduler_kwargs") or {}
    if name not in _scheduler_options() or not isinstance(given, dict):
        return
    known, needed = _scheduler_options()[name]
    missing = sorted(needed - given.keys())
    if {"min_lr", "min_lr_rate"} <= known and not {"min_lr", "min_lr_rate"} & given.keys():
        missing = ["min_lr_rate"]
    if missing:
        example = ", ".join(f"{option}: …" for option in missing)
        yield f"train.lr_scheduler_type={name} needs options: set {key}={{{example}}}."
    if name != "reduce_lr_on_plateau" and (lost := sorted(given.keys() - known)):
        yield f"{key}: {name} has no {', '.join(lost)}; it has {', '.join(sorted(known)) or 'none'}."


@functools.cache
def enum_values(name: str) -> tuple[str, ...]:
    """The values of an enumeration of Transformers (`OptimizerNames`, `SchedulerType`)."""
    transformers = _package("transformers")
    for file in ("training_args.py", "trainer_utils.py"):
        for node in ast.parse((transformers / file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                values = [i.value for i in node.body if isinstance(i, ast.Assign)]
                return tuple(str(v.value) for v in values if isinstance(v, ast.Constant))
    return ()


def _type_problem(name: str, value: Any, options: dict[str, str]) -> str | None:
    annotation = options[name]
    if name.endswith("_kwargs") and "dict" in annotation:  # a text would be passed on as it is, and fail after loading
        if value is None or isinstance(value, dict):
            return None
        return f"train.extra.{name} must be a mapping: train.extra.{name}={{name: value}}, not {quoted(value)}."
    kinds = [kind.strip() for kind in annotation.split("|")]
    if not set(kinds) <= set(_PLAIN) or (isinstance(value, str) and "${" in value):
        return None
    if any(isinstance(value, _PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool)) for kind in kinds):
        return None
    return f"train.extra.{name} must be of TRL's type `{annotation}`, not {quoted(value)}."


def of_the_trainer(name: str) -> str:
    """What to say to a name that is no key of ours: how the trainer's option is set, or why it can't be; else empty."""
    if said := _NOT_HERE.get(name):
        return f" {said[0].upper()}{said[1:]}."
    return f" Did you mean train.extra.{name}?" if name in _every_option() else ""


def problems_of_extra(extra: dict[str, Any]) -> list[str]:
    """What is wrong with the names and the plain values under `train.extra`."""
    named = set(TrainConfig.__dataclass_fields__)
    found = []
    for name, value in extra.items():
        if name in named:
            found.append(f"train.extra.{name}: this is a key of its own: set train.{name}.")
        elif name in _NOT_HERE:
            found.append(f"train.extra.{name} can't be set there: {_NOT_HERE[name]}.")
        elif name not in _every_option():
            hint = f" Did you mean {OTHER_TOOLS[name]}?" if name in OTHER_TOOLS else did_you_mean(name, _every_option())
            found.append(f"train.extra.{name}: no trainer of TRL's has such an option.{hint}")
        elif problem := _type_problem(name, value, _every_option()):
            found.append(problem)
    return found
