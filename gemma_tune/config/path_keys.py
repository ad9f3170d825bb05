"""Everything on disk that a configuration names, from the schema: `option(path=…)` marks such keys.

One walk serves them all: absolute paths, checks that a file exists, digests of a run's inputs, and what
`overwrite=true` must not delete.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gemma_tune.config import Config
from gemma_tune.config.eval import EVALUATORS
from gemma_tune.config.model import CHAT_FORMS
from gemma_tune.run.paths import absolute, resolve
from gemma_tune.untrusted import read_object

# What is written; and a checkpoint, which lies in the run's own folder: a run that is resumed is not replaced.
NOT_READ = ("output", "checkpoint")


@dataclass(frozen=True)
class NamedPath:
    """A file, folder or glob that a configuration names.

    Attributes:
        key: Its key: `data.test_files.mine`; every item of a list has the key of the list.
        kind: One of `option.PathKind`.
        name: As it is written; of a function its file.
    """

    key: str
    kind: str
    name: str


def _marked(part: Any, prefix: str = "") -> Iterator[tuple[Any, str, str, str]]:
    """Every key of the schema with `path=`: the instance that holds it, the field's name, the whole key, the kind."""
    for f in dataclasses.fields(part):
        if dataclasses.is_dataclass(value := getattr(part, f.name)):
            yield from _marked(value, f"{prefix}{f.name}.")
        elif kind := f.metadata.get("path"):
            yield part, f.name, f"{prefix}{f.name}", kind


def named_paths(part: Any, prefix: str = "") -> Iterator[NamedPath]:
    """Everything on disk that is named, in the order of the schema; names on the Hub are among them.

    Short names, of an evaluator for example, are not: they name no file.

    Args:
        part: The configuration, or one of its groups.
        prefix: What its keys begin with: `data.`; nothing for the whole configuration.
    """
    for owner, field, key, kind in _marked(part, prefix):
        value = getattr(owner, field)
        named = value.items() if isinstance(value, dict) else [("", v) for v in _as_list(value)]
        for name, path in named:
            path = path.rpartition(":")[0] if kind == "function" and path else path
            if path and not (kind == "template" and path in CHAT_FORMS):
                yield NamedPath(f"{key}.{name}" if name else key, kind, path)


def read_paths(cfg: Config, group: str) -> Iterator[NamedPath]:
    """What the run reads by the keys of a group: nothing of an evaluator or a reward that isn't used."""
    for path in named_paths(getattr(cfg, group), f"{group}."):
        if path.kind not in NOT_READ and _has_effect(cfg, path.key):
            yield path


def _has_effect(cfg: Config, key: str) -> bool:
    """Whether what a key of `eval` or `reward` names is used."""
    group, section, *_ = key.split(".")
    if group == "eval" and section in EVALUATORS:
        return section in cfg.evaluator_names
    if group == "reward":
        used = cfg.traits.rewarded or "rewards" in cfg.evaluator_names
        return used and (section == "functions" or bool(getattr(cfg.reward, section).weight))
    return key != "eval.during_training" or bool(cfg.train.eval_steps)


def make_absolute(cfg: Config) -> None:
    """Sets the absolute path of everything that is read: the stored configuration repeats the run from any folder.

    What isn't read stays as it is: it is no part of what a run is. Names in a mapping that are null are left out.
    """
    for owner, field, _, kind in _marked(cfg):
        setattr(owner, field, _changed(getattr(owner, field), partial(_absolute, kind=kind)))


def _absolute(name: str, kind: str) -> str:
    if kind in NOT_READ:
        return name
    if kind == "template" and name in CHAT_FORMS:
        return name
    if kind == "function":
        file, colon, function = name.rpartition(":")
        return f"{absolute(file)}:{function}" if colon else name
    if kind in ("model", "dataset") and not (resolve(name).is_dir() or name.lower().endswith(".gguf")):
        return name  # of the Hub
    return absolute(name)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {name: change(v) for name, v in value.items() if v}
    if isinstance(value, list):
        return [change(v) for v in value]
    return change(value) if value else value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def base_of_adapter(folder: Path) -> Path | None:
    """The local base model that a PEFT adapter was trained on, by its folder or its run's; None where there is none."""
    for place in (folder, folder / "adapter"):
        try:
            stored = read_object(place / "adapter_config.json")
            base = Path(stored["base_model_name_or_path"])
            return base if base.is_dir() else None
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
