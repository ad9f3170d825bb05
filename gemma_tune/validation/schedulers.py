"""Checks of the learning rate's schedule and its options, whose names are read as text from Transformers and torch."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from typing import Any

from gemma_tune.config import Config, TrainConfig
from gemma_tune.config.train import BY_METRIC
from gemma_tune.errors import quoted
from gemma_tune.validation.suggest import did_you_mean
from gemma_tune.validation.trainer_options import package

_KEY = "train.extra.lr_scheduler_kwargs"
# Of those that follow a metric: the class behind them
_CLASSES = {
    "reduce_lr_on_plateau": ("torch", "optim/lr_scheduler.py", "ReduceLROnPlateau"),
    "greedy": ("transformers", "optimization.py", "GreedyLR"),
}
_NO_WARMUP = ("constant", *BY_METRIC)
_GIVEN = ("self", "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "mode")
_SHAPES = ("linear", "cosine", "1-sqrt")
_VALUES = {"warmup_type": _SHAPES, "decay_type": _SHAPES, "threshold_mode": ("rel", "abs")}
_RATES = ("min_lr", "lr_end")  # the learning rate decreases to it


def scheduler_problems(cfg: Config) -> Iterator[str]:
    """What the schedule has no use for, and what its options lack or have too much; else found after loading."""
    train, name = cfg.train, cfg.train.lr_scheduler_type
    if name in _NO_WARMUP and train.warmup_steps not in (0, TrainConfig().warmup_steps):
        other = "take constant_with_warmup, or " if name == "constant" else ""
        yield f"train.warmup_steps has no effect with train.lr_scheduler_type={name}; {other}leave it out."
    if name in BY_METRIC and cfg.traits.stages:
        yield (
            f"train.lr_scheduler_type={name} with recipe={cfg.recipe}: nothing is measured during its second training; "
            "take another one."
        )
    given = train.extra.get("lr_scheduler_kwargs") or {}
    arguments = _arguments(name)
    if arguments is None or not isinstance(given, dict):
        return
    names = [a.arg for a in arguments.args]
    known = {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in arguments.args if a.arg not in _GIVEN}
    needed = {*names[: len(names) - len(arguments.defaults)]} - {*_GIVEN}
    if name == "greedy":  # its default, 1e-3, is above most learning rates here, and so it would lower none
        needed.add("min_lr")
    missing = sorted(needed - given.keys())
    if {"min_lr", "min_lr_rate"} <= known.keys():
        least = [option for option in ("min_lr", "min_lr_rate") if given.get(option) is not None]
        missing += ["min_lr_rate"] * (not least)
        if len(least) == 2:
            yield f"{_KEY}: min_lr and min_lr_rate are both set; choose one."
    if missing:
        example = ", ".join(f"{option}: …" for option in missing)
        yield f"train.lr_scheduler_type={name} needs options: set {_KEY}={{{example}}}."
    if name in BY_METRIC and "mode" in given:
        yield f"{_KEY}: mode is that of train.greater_is_better; set it there."
    elif lost := sorted(given.keys() - known.keys()):
        yield f"{_KEY}: {name} has no {', '.join(lost)}; it has {', '.join(sorted(known)) or 'none'}."
    for option in sorted(known.keys() & given.keys()):
        yield from _value_problem(option, given[option], known[option], train.learning_rate)


def _value_problem(option: str, value: Any, annotation: str, rate: float | None) -> Iterator[str]:
    """Why a value of an option can't be, or what it would do that nobody wants."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if option in _VALUES and value not in _VALUES[option]:
        known = ", ".join(_VALUES[option])
        yield f"{_KEY}: {option} is one of {known}, not {quoted(value)}.{did_you_mean(str(value), _VALUES[option])}"
    elif "int" in annotation.split(" | ") and value is not None and (number is None or number < 0 or number % 1):
        yield f"{_KEY}: {option} must be a whole number, not {quoted(value)}."
    elif option in _RATES and number is not None and rate is not None and number >= rate:
        yield f"{_KEY}: {option}={number:g} is not below the learning rate, {rate:g}, which falls to it; lower it."


@functools.cache
def _arguments(name: str) -> ast.arguments | None:
    """What the function or the class behind a schedule takes; None for a name that Transformers doesn't have."""
    if name in _CLASSES:
        of, file, named = _CLASSES[name]
        found = next(n for n in _parsed(of, file) if isinstance(n, ast.ClassDef) and n.name == named)
        return next(n.args for n in found.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    nodes = _parsed("transformers", "optimization.py")
    functions = {node.name: node.args for node in nodes if isinstance(node, ast.FunctionDef)}
    table: Any = next(
        node.value
        for node in nodes
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TYPE_TO_SCHEDULER_FUNCTION"
    )
    for kind, function in zip(table.keys, table.values, strict=True):
        if ast.unparse(kind).rpartition(".")[2].lower() == name:
            return functions[ast.unparse(function)]
    return None


def _parsed(of: str, file: str) -> list[ast.stmt]:
    return ast.parse((package(of) / file).read_text(encoding="utf-8")).body
