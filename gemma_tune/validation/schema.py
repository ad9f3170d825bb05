"""Checks a tree of values against the dataclasses: unknown keys, wrong types, values outside their limits."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gemma_tune.config import Config
from gemma_tune.config.renamed import renamed_key
from gemma_tune.validation.suggest import INSTEAD, NOT_OF_ADAPTERS, OTHER_TOOLS, did_you_mean, suggest_key
from gemma_tune.validation.trainer_options import of_the_trainer, problems_of_extra

GROUPS = ("recipe", *(f.name for f in dataclasses.fields(Config) if f.default_factory is not dataclasses.MISSING))


def _type_name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    arguments = typing.get_args(kind)
    if type(None) in arguments:
        return " or ".join(_type_name(a) for a in arguments if a is not type(None)) + " (or null)"
    if typing.get_origin(kind) is list:
        return {int: "a list of whole numbers", float: "a list of numbers", str: "a list of texts"}[arguments[0]]
    return names.get(kind, "a mapping" if typing.get_origin(kind) is dict else str(kind))


def _walk(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind = hints[f.name]
        if dataclasses.is_dataclass(kind):
            yield from _walk(typing.cast(type, kind), f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", f, kind


FIELDS = {key: (f, kind) for key, f, kind in _walk(Config)}
_DEFAULTS = OmegaConf.structured(Config)
OPEN = tuple(key for key, (_, kind) in FIELDS.items() if typing.get_origin(kind) is dict)


def is_open(key: str) -> bool:
    """Whether the key lies below one that takes any name (`train.extra.…`)."""
    return any(key.startswith(f"{o}.") for o in OPEN)


def unknown_key(key: str, where: str) -> str | None:
    """The message for a key that the schema lacks, or None."""
    if key in FIELDS or is_open(key) or key in GROUPS:
        return None
    if said := renamed_key(key):
        return f"{where}: there is no key `{key}`: {said}."
    above, _, last = key.rpartition(".")
    if above == "adapter" and (why := NOT_OF_ADAPTERS.get(last)):
        return f"{where}: {key}: PEFT's option has no place here: {why}."
    hint = ""
    if last not in OTHER_TOOLS and (above == "train" or last in INSTEAD or full_key(last) not in FIELDS):
        hint = of_the_trainer(last)
    return f"{where}: there is no key `{key}`.{hint or suggest_key(key, [*FIELDS, *GROUPS])}"


def full_key(name: str) -> str:
    """The first key that is this name or ends with it; else the name as it is."""
    return name if name in FIELDS else next((key for key in FIELDS if key.rpartition(".")[2] == name), name)


def wrong_value(key: str, value: Any, where: str) -> str | None:
    """The message for a value that the key can't take (type, choices, limits), or None."""
    if key not in FIELDS or (isinstance(value, str) and "${" in value):
        return None
    f, kind = FIELDS[key]
    limits = f.metadata
    try:
        # OmegaConf converts as the composition will: "3" is a number, "abc" is not.
        value = _converted(key, value)
    except OmegaConfBaseException:
        return _wrong_type(key, kind, value, where)
    if value is None:
        return None
    if key == "model.dtype" and value in ("float16", "fp16", "half"):
        return f"{where}: model.dtype=float16 overflows on Gemma 3 and trains to NaN; use bfloat16 or float32."
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where}: {key} must be a finite number, not {value}."
    choices = limits.get("choices") or ()
    if choices and value not in choices:
        return f"{where}: {key} must be one of {', '.join(choices)}, not {value!r}.{did_you_mean(str(value), choices)}"
    for name, words, broken in (
        ("at_least", "at least", operator.lt),
        ("above", "more than", operator.le),
        ("at_most", "at most", operator.gt),
    ):
        limit = limits.get(name)
        if limit is not None and broken(value, limit):
            return f"{where}: {key} must be {words} {limit:g}, not {value:g}."
    return None


def _wrong_type(key: str, kind: Any, value: Any, where: str) -> str:
    if typing.get_origin(kind) is not dict:
        listed = not isinstance(value, list | dict) and _fits(key, [value])
        fix = f": write {key}=[{value}]" if listed else ""
        return f"{where}: {key} must be {_type_name(kind)}, not {value!r}{fix}."
    if isinstance(value, str) and value.startswith("{"):
        return f"{where}: {key}={value} can't be read as a mapping; write {key}='{{\"NAME\": VALUE}}'."
    if not isinstance(value, dict):
        return f"{where}: {key} holds values by name: write {key}.NAME={value}."
    inner = typing.get_args(kind)[1]
    wrong = {name: v for name, v in value.items() if not _fits(key, {name: v})}
    return "; ".join(f"{where}: {key}.{name} must be {_type_name(inner)}, not {v!r}." for name, v in wrong.items())


def _fits(key: str, value: Any) -> bool:
    """Whether OmegaConf can convert the value as the composition will."""
    try:
        _converted(key, value)
    except OmegaConfBaseException:
        return False
    return True


def _converted(key: str, value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return _converted_once(key, type(value).__name__, value)
    return _merged(key, value)


@functools.cache  # a merge copies the whole group, and most values are the same in every composition of a process
def _converted_once(key: str, kind: str, value: Any) -> Any:
    """As `_merged`; `kind` tells True from 1."""
    return _merged(key, value)


def _merged(key: str, value: Any) -> Any:
    group, _, name = key.rpartition(".")
    defaults = OmegaConf.select(_DEFAULTS, group) if group else _DEFAULTS
    return OmegaConf.select(OmegaConf.merge(defaults, {name: value}), name)


def nest(key: str, value: Any) -> dict[str, Any]:
    """The nested mapping with one value below a dotted key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast(dict[str, Any], value)


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping with their dotted keys; an open mapping is one leaf."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in OPEN and (value or key not in FIELDS):
            yield from flatten(value, f"{key}.")
        else:
            yield key, value


def _names_target(key: str, value: Any) -> bool:
    below = value.items() if isinstance(value, dict) else ()
    return "_target_" in key.split(".") or any(_names_target(str(k), v) for k, v in below)


def problems_of_tree(tree: dict[str, Any], where: str) -> list[str]:
    """All problems of a nested mapping of values, each naming `where` it stands."""
    found: list[str | None] = []
    for key, value in flatten(tree):
        if _names_target(key, value):
            found.append(f"{where}: `{key}`: there is no _target_ here; name a part, or path/to/file.py:function.")
        elif key in GROUPS and key not in FIELDS:
            found.append(
                f"{where}: {key} is a group and can't be {value!r}; set its keys, or choose one of its options with "
                f"`defaults: [NAME, {{override /{key}: OPTION}}, _self_]`."
            )
        elif key == "train.extra" and isinstance(value, dict):
            found += [f"{where}: {problem}" for problem in problems_of_extra(value)]
        else:
            found.append(unknown_key(key, where) or wrong_value(key, value, where))
    return [f for f in found if f]
