"""`recipe=path/to/my_recipe.py`: a recipe of the user's own, with its values in the YAML of the same name beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from gemma_tune import validation
from gemma_tune.errors import shortened
from gemma_tune.run.paths import RECIPES, resolve
from gemma_tune.untrusted import MIB, read_bytes
from gemma_tune.validation.suggest import missing_path

_WORD = "recipe="
_QUOTES = ("'", '"')
_NAME = 100  # characters of the part of the run folder's name


@dataclass
class Words:
    """The words of the command line with own recipes taken out.

    Attributes:
        checked: The words without them, for the checks that know the shipped recipes only.
        ready: All words, with own recipes by the names under which Hydra knows them now.
        problems: What is wrong with own recipes, or with their values.
    """

    checked: list[str] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def take_own_recipes(words: Sequence[str], config_dirs: Sequence[Path], sweeps: bool = False) -> Words:
    """Makes the recipes that are named by their files known to Hydra, which reads no path as an option.

    Args:
        words: `key=value` words as typed.
        config_dirs: Folders named with `--config-dir`.
        sweeps: Whether commas mean several recipes (`--multirun`).
    """
    found = Words()
    for word in words:
        if word.startswith("recipe_file="):
            found.problems.append("command line: recipe_file is set by the recipe: write recipe=path/to/my_recipe.py.")
            continue
        values = _values(word.removeprefix(_WORD)) if word.startswith(_WORD) else []
        own = [value for value in values if _is_file_name(value)]
        if not own:
            found.checked.append(word)
            found.ready.append(word)
            continue
        if len(values) > 1 and not sweeps:
            said = shortened(word)
            found.problems.append(
                f"command line: {said}: a comma separates the values of a sweep; -m {said} runs each."
            )
        if rest := [value for value in values if value not in own]:
            found.checked.append(_WORD + ",".join(rest))
        for value in own:
            found.problems += _problems(value, list(config_dirs))
        if not found.problems:
            options = [_register(resolve(value).absolute()) if value in own else value for value in values]
            found.ready.append(_WORD + ",".join(options))
    return found


def _is_file_name(value: str) -> bool:
    return value.lower().endswith(".py")


def _values(given: str) -> list[str]:
    """The value, or with --multirun several; a path may hold commas itself."""
    plain = without_quotes(given)
    if "," not in given or (_is_file_name(plain) and resolve(plain).is_file()):
        return [plain]
    return [without_quotes(value) for value in given.split(",")]


def without_quotes(value: str) -> str:
    """A value as it is meant: without blanks around it, and without its quotes."""
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] in _QUOTES and value[-1] == value[0] else value


def _problems(name: str, config_dirs: list[Path]) -> list[str]:
    file = resolve(name)
    if not file.is_file():
        return [missing_path("recipe", name, "file")]
    if RECIPES in file.absolute().parents:
        return [
            f"recipe={name}: this file is one of ours, without values of its own; copy the recipe that you want to "
            "change: recipe=copy copy.recipe=qlora_sft copy.to=."
        ]
    values = file.with_suffix(".yaml")
    if not values.is_file():
        return [
            f"recipe={name}: its values are missing: {values} names the `method` that it varies. "
            f"recipe=copy copy.recipe=qlora_sft writes both files; or for example:\n{validation.EXAMPLE}"
        ]
    return validation.problems_of_recipe(values, config_dirs)


def _register(file: Path) -> str:
    """Makes a recipe an option of Hydra's group.

    Returns:
        The option's name: no path, which Hydra's grammar would not take.
    """
    tree: Any = OmegaConf.create(read_bytes(file.with_suffix(".yaml"), MIB).decode("utf-8"))
    tree["recipe"] = re.sub(r"[^\w.-]+", "_", file.stem)[:_NAME].strip("_") or "own"
    tree["recipe_file"] = validation.literal(str(file))
    option = f"{re.sub('[^A-Za-z0-9_]', '_', file.stem)[:_NAME]}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    ConfigStore.instance().store(option, tree, group="recipe", package="_global_", provider=str(file))
    return option
