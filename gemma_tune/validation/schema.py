"""Checks a tree of values against the dataclasses: unknown keys, wrong types, values outside their limits."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gemma_tune.config import Config
from gemma_tune.config.option import plain_number
from gemma_tune.config.renamed import renamed_key
from gemma_tune.errors import quoted, shortened
from gemma_tune.validation.suggest import INSTEAD, NOT_OF_ADAPTERS, OTHER_TOOLS, did_you_mean, own_reward, suggest_key
from gemma_tune.validation.trainer_options import of_the_trainer, problems_of_extra

# Bytes of a name and of a path, as Linux and macOS take them at least
_NAME, _PATH = 255, 4096
_SHORT_NAME = 100  # characters of a name that the user gives, of a test set for example
_OF_EXTRA = 1e15  # of numbers below train.extra
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
DEFAULTS = OmegaConf.structured(Config)  # merges copy it; nobody sets anything in it
OPEN = tuple(key for key, (_, kind) in FIELDS.items() if typing.get_origin(kind) is dict)


def is_open(key: str) -> bool:
    """Whether the key lies below one that takes any name (`train.extra.…`)."""
    return any(key.startswith(f"{o}.") for o in OPEN)


def overlap(key: str, other: str) -> bool:
    """Whether one of two keys or groups is the other one, or lies below it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def unknown_key(key: str, where: str) -> str | None:
    """The message for a key that the schema lacks, or None."""
    if key in FIELDS or is_open(key) or key in GROUPS:
        return None
    if said := renamed_key(key):
        return f"{where}: there is no key `{key}`: {said}."
    above, _, last = key.rpartition(".")
    if above == "adapter" and (why := NOT_OF_ADAPTERS.get(last)):
        return f"{where}: {key}: PEFT's option has no place here: {why}."
    if len(key) > _NAME:
        return f"{where}: there is no key `{shortened(key)}`."
    hint = ""
    if last not in OTHER_TOOLS and (above == "train" or last in INSTEAD or full_key(last) not in FIELDS):
        hint = of_the_trainer(last)
    if key.startswith("reward.") and last not in INSTEAD:
        hint = own_reward(key, FIELDS) or hint
    return f"{where}: there is no key `{key}`.{hint or suggest_key(key, [*FIELDS, *GROUPS])}"


def is_secret(key: str) -> bool:
    """Whether the value of a key is never shown."""
    return key in FIELDS and bool(FIELDS[key][0].metadata["secret"])


def of_a_secret(key: str) -> str:
    """What a secret has to be, as the end of a sentence."""
    most = FIELDS[key][0].metadata["longest"]
    return f"must be one text of at most {most:,} characters, without blanks and commas; its value isn't shown."


def full_key(name: str) -> str:
    """The first key that is this name or ends with it; else the name as it is."""
    return name if name in FIELDS else next((key for key in FIELDS if key.rpartition(".")[2] == name), name)


def wrong_value(key: str, value: Any, where: str) -> str | None:
    """The message for a value that the key can't take (type, choices, limits), or None."""
    if key not in FIELDS or (isinstance(value, str) and "${" in value):
        return None
    f, kind = FIELDS[key]
    limits = f.metadata
    if limits["secret"]:
        fits = value is None or (isinstance(value, str | int) and len(str(value)) <= limits["longest"])
        return None if fits else f"{where}: {key} {of_a_secret(key)}"
    try:
        # OmegaConf converts as the composition will: "3" is a number, "abc" is not.
        value = _converted(key, value)
    except OmegaConfBaseException:
        return _wrong_type(key, kind, value, where)
    except (ValueError, OverflowError, RecursionError):  # an int of thousands of digits as a text, a list of lists
        return f"{where}: {key} can't be {quoted(value)}."
    if value is None:
        return None
    if key == "model.dtype" and value in ("float16", "fp16", "half"):
        return f"{where}: model.dtype=float16 overflows on Gemma 3 and trains to NaN; use bfloat16 or float32."
    if (endless := endless_number(value)) is not None:
        return f"{where}: {key} must be a finite number, not {quoted(endless)}."
    choices = limits.get("choices") or ()
    if choices and value not in choices:
        hint = did_you_mean(shortened(str(value)), choices)
        return f"{where}: {key} must be one of {', '.join(choices)}, not {quoted(value)}.{hint}"
    longest = limits.get("longest")
    if longest and isinstance(value, str) and len(value) > longest:
        return f"{where}: {key} must have at most {longest} characters, not {len(value):,}."
    return _outside(key, value, limits, where) or _no_path(key, value, limits, where)


def endless_number(value: Any) -> Any:
    """The first number of a value that is none to compute with (nan, inf, an int beyond every float), or None."""
    return next((v for v in numbers_in(value) if not _is_finite(v)), None)


def numbers_in(value: Any) -> Iterator[int | float]:
    """The numbers of a value: itself, or those in its lists and mappings."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False


def _outside(key: str, value: Any, limits: Mapping[str, Any], where: str) -> str | None:
    """The message for a number outside of its limits, or None."""
    for name, words, broken in (
        ("at_least", "at least", operator.lt),
        ("above", "more than", operator.le),
        ("at_most", "at most", operator.gt),
    ):
        limit = limits.get(name)
        for inner, part in value.items() if isinstance(value, dict) else [("", value)]:
            if limit is not None and (bad := [v for v in numbers_in(part) if broken(v, limit)]):
                named = f"{key}.{inner}" if inner else key
                return f"{where}: {named} must be {words} {plain_number(limit)}, not {plain_number(bad[0])}."
    return None


def _no_path(key: str, value: Any, limits: Mapping[str, Any], where: str) -> str | None:
    """The message for a name that no file system takes, or None."""
    if isinstance(value, dict) and (long := next((n for n in value if len(str(n)) > _SHORT_NAME), None)):
        return f"{where}: {key}.{shortened(str(long))}: this name has more than {_SHORT_NAME} characters."
    named = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
    for name in named if limits.get("path") else ():
        encoded = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else b""
        if b"\0" in encoded or len(encoded) > _PATH or any(len(part) > _NAME for part in encoded.split(b"/")):
            return (
                f"{where}: {key}={quoted(name)}: no file can have this name (at most {_NAME} bytes, {_PATH} with its "
                "folders, and no zero byte); name another."
            )
    return None


def _wrong_type(key: str, kind: Any, value: Any, where: str) -> str:
    if typing.get_origin(kind) is not dict:
        listed = not isinstance(value, list | dict) and _fits(key, [value])
        fix = f": write {key}=[{shortened(str(value))}]" if listed else ""
        return f"{where}: {key} must be {_type_name(kind)}, not {quoted(value)}{fix}."
    if isinstance(value, str) and value.startswith("{"):
        return f"{where}: {key}={shortened(value)} can't be read as a mapping; write {key}='{{\"NAME\": VALUE}}'."
    if not isinstance(value, dict):
        one = key.removesuffix("s")
        ways = f"; for one alone: {one}={shortened(str(value))}" if one in FIELDS else ""
        return f"{where}: {key} holds values by name: write {key}.NAME={shortened(str(value))}{ways}."
    inner = typing.get_args(kind)[1]
    wrong = {name: v for name, v in value.items() if not _fits(key, {name: v})}
    return "; ".join(
        f"{where}: {key}.{name} must be {_type_name(inner)}, not {quoted(v)}." for name, v in wrong.items()
    )


def _fits(key: str, value: Any) -> bool:
    """Whether OmegaConf can convert the value as the composition will."""
    try:
        _converted(key, value)
    except (OmegaConfBaseException, ValueError, OverflowError):
        return False
    return True


def _converted(key: str, value: Any) -> Any:
    kind = FIELDS[key][1]
    if value is None or isinstance(value, str | int | float):
        return _converted_once(kind, type(value).__name__, value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return _converted_texts(kind, list, tuple(value))
    if isinstance(value, dict) and all(isinstance(part, str) for pair in value.items() for part in pair):
        return _converted_texts(kind, dict, tuple(value.items()))
    return _merged(kind, value)


@functools.cache  # most values are the same in every key of a kind and in every composition of a process
def _converted_once(kind: Any, given: str, value: Any) -> Any:
    """As `_merged`; `given` tells True from 1."""
    return _merged(kind, value)


@functools.cache
def _converted_texts(kind: Any, given: type, parts: tuple[Any, ...]) -> Any:
    """As `_merged`, of a list or a mapping of texts, or an empty one."""
    return _merged(kind, given(parts))


def _merged(kind: Any, value: Any) -> Any:
    found = OmegaConf.select(OmegaConf.merge(_schema_of(kind), {"value": value}), "value")
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


@functools.cache
def _schema_of(kind: Any) -> Any:
    """A schema of one field: a merge copies all of its schema, and a group has up to a hundred."""
    return OmegaConf.structured(dataclasses.make_dataclass("One", [("value", kind)]))


def _beyond(key: str, value: Any, where: str) -> str | None:
    """The message for a number of the trainer's own options that it could only fail on, or None."""
    bad = [v for v in numbers_in(value) if not _is_finite(v) or abs(v) > _OF_EXTRA]
    return f"{where}: {key} must be at most {_OF_EXTRA:g}, not {quoted(bad[0])}." if bad else None


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
                f"{where}: {key} is a group and can't be {quoted(value)}; set its keys, or choose one of its options "
                f"with `defaults: [NAME, {{override /{key}: OPTION}}, _self_]`."
            )
        elif key == "train.extra" and isinstance(value, dict):
            found += [f"{where}: {problem}" for problem in problems_of_extra(value)]
            found += [_beyond(f"{key}.{name}", inner, where) for name, inner in value.items()]
        else:
            found.append(unknown_key(key, where) or wrong_value(key, value, where))
    return [f for f in found if f]
