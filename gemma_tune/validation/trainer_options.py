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
from gemma_tune.validation.trainer_tables import DECIDED, LOSSES, NEEDS, OURS, RANGES, USED_BY, VALUES, distils

_NOT_HERE = DECIDED | INSTEAD

# Options of recomputation: those of torch's checkpoint, and those of Transformers
_OF_CHECKPOINT = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
_WHICH_LAYERS = ("every_n_layers", "offload")

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


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    return Path(spec.origin).parent


@functools.cache
def trainer_options(name: str = "SFTConfig") -> dict[str, str]:
    """Names and type annotations of every field of one of TRL's dataclasses and of the classes it inherits from."""
    trl, transformers = package("trl"), package("transformers")
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
    """Options that the trainer behind the recipe doesn't have, or has no use for."""
    name = trainer_of(cfg)
    options, default = trainer_options(name), TrainConfig()
    for key, value in vars(cfg.train).items():
        if value == getattr(default, key):
            continue
        if key not in OURS and key not in options:
            yield f"train.{key} has no effect with recipe={cfg.recipe}: TRL's {name} has no such option; leave it out."
        elif key in USED_BY and not USED_BY[key](cfg.traits):
            yield f"train.{key} has no effect with recipe={cfg.recipe}; leave it out."
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
    yield from _recomputation_problems(cfg, name)
    yield from _loss_problems(cfg, name)
    for key, value in cfg.train.extra.items():
        if key not in options and key in _every_option():
            yield f"train.extra.{key}: TRL's {name} has no such option.{did_you_mean(key, options)}"
        elif key in options:
            problem = _type_problem(key, value, options) or _value_problem(key, value, cfg.train)
            yield from [problem] if problem else []


def _loss_problems(cfg: Config, name: str) -> Iterator[str]:
    """Losses that TRL's trainer doesn't have, and what has no effect on the one that is trained on."""
    train, asked, known = cfg.train, cfg.train.loss_type, LOSSES.get(name, ())
    if asked and distils(cfg.traits):
        yield (
            f"train.loss_type={asked} has no effect with recipe={cfg.recipe}: its loss is made of the teacher's "
            "probabilities and the cross-entropy (quant.cross_entropy); leave it out."
        )
    for loss in train.joined_losses if name == "DPOConfig" else [asked or ""]:
        if asked and known and loss not in known:
            yield (
                f"train.loss_type={loss}: no loss of TRL's {name.removesuffix('Config')}Trainer; there are "
                f"{', '.join(known)}.{did_you_mean(loss, known)}"
            )
    smoothed = "train.extra.label_smoothing_factor"
    if train.extra.get("label_smoothing_factor"):
        if name != "SFTConfig" or distils(cfg.traits):
            yield f"{smoothed} has no effect with recipe={cfg.recipe}; leave it out."
        elif asked not in (None, "nll", "chunked_nll"):  # the last is the first by its older name
            yield f"{smoothed} has no effect with train.loss_type={asked}; leave one of them out."


def _value_problem(key: str, value: Any, train: TrainConfig) -> str | None:
    """Why an option of the right type has no effect, or a value that TRL looks at when it is used."""
    for names, other, is_set in NEEDS if value not in (None, False) else ():
        if any(key == one or (one.endswith("_") and key.startswith(one)) for one in names) and not is_set(train):
            return f"train.extra.{key} has no effect without {other}; set it, too, or leave this out."
    if value is not None and (known := VALUES.get(key)) and value not in known:
        return f"train.extra.{key}={value}: there are {', '.join(known)}.{did_you_mean(str(value), known)}"
    if key in RANGES and isinstance(value, int | float):
        will_do, said = RANGES[key]
        if not will_do(value):
            return f"train.extra.{key} must be {said}, not {value:g}."
    return None


def _recomputation_problems(cfg: Config, name: str) -> Iterator[str]:
    """What `train.extra.gradient_checkpointing_kwargs` can't be; torch would find it in the first step, or never."""
    key = "train.extra.gradient_checkpointing_kwargs"
    given = cfg.train.extra.get("gradient_checkpointing_kwargs") or {}
    if not isinstance(given, dict):
        return
    if given and not cfg.train.gradient_checkpointing:
        yield f"{key} has no effect without train.gradient_checkpointing=true; set it, or leave {key} out."
    if given.get("use_reentrant"):  # keys and values that several layers use get the gradient of none of them
        yield (
            f"{key}={{use_reentrant: true}}: reentrant recomputation loses gradients of keys and values that layers "
            "share (Gemma 3n, Gemma 4 E2B and E4B); leave it out."
        )
    known = (*_OF_CHECKPOINT, *_WHICH_LAYERS, "selective")
    for option in sorted(given.keys() - {*known}):
        yield f"{key}: there is no {option}; there are {', '.join(known)}.{did_you_mean(option, known)}"
    for option in _WHICH_LAYERS if cfg.traits.rewarded else ():
        if given.get(option):
            yield f"{key}: {option} has no effect with recipe={cfg.recipe}, where TRL drops it after a generation."
    if given.get("selective") and (name != "SFTConfig" or cfg.traits.stages or cfg.adapter.peft_type != "none"):
        yield f"{key}: selective has an effect with SFT that trains every weight alone (adapter=none); leave it out."
    layers = given.get("every_n_layers", 1)
    if type(layers) is not int or layers < 1:
        yield f"{key}: every_n_layers must be a whole number above 0, not {quoted(layers)}."


@functools.cache
def enum_values(name: str) -> tuple[str, ...]:
    """The values of an enumeration of Transformers (`OptimizerNames`, `SchedulerType`)."""
    transformers = package("transformers")
    for file in ("training_args.py", "trainer_utils.py"):
        for node in ast.parse((transformers / file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                values = [i.value for i in node.body if isinstance(i, ast.Assign)]
                return tuple(str(v.value) for v in values if isinstance(v, ast.Constant))
    return ()


def _type_problem(name: str, value: Any, options: dict[str, str]) -> str | None:
    annotation = options[name]
    # A text would be passed on as it is, and fail after loading
    if name.endswith(("_kwargs", "_config")) and "dict" in annotation:
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
