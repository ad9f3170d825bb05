"""What the user has named, apart from what the shipped files say: keys and options, by words and in files of their own.

A run folder brings its own rows and settings (cli/run_settings.py), and what is named here stands above them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from gemma_tune.nested import leaves
from gemma_tune.run.paths import CONFIGS
from gemma_tune.untrusted import read_yaml
from gemma_tune.validation.choices import options_of
from gemma_tune.validation.schema import GROUPS

_RECIPE = "recipe"


@dataclass(frozen=True)
class UserOverrides:
    """What stands on the command line and in the user's own files.

    Attributes:
        groups: Groups of which an option was chosen: `data`, by `data=auto`.
        keys: Whole keys: `data.test_files.mine`.
    """

    groups: frozenset[str]
    keys: frozenset[str]

    def within(self, group: str) -> list[str]:
        """The keys of a group, without its name: `test_files.mine`."""
        return sorted(key.removeprefix(f"{group}.") for key in self.keys if key.startswith(f"{group}."))

    def has(self, key: str) -> bool:
        """Whether a key, or one below it, was named."""
        return any(key == name or name.startswith(f"{key}.") for name in self.keys)


def user_overrides(words: Sequence[str], config_dirs: Sequence[Path]) -> UserOverrides:
    """Reads words that were checked, and the files of `--config-dir` that they choose."""
    groups, keys = set[str](), set[str]()
    for word in words:
        key, _, value = word.partition("=")
        key = key.lstrip("+").lstrip("/")
        if key != _RECIPE:
            (groups if key in GROUPS else keys).add(key)
            continue
        for kind, name in _in_recipe(value.strip("'\""), list(config_dirs), set()):
            (groups if kind == "group" else keys).add(name)
    return UserOverrides(frozenset(groups), frozenset(keys))


def _in_recipe(name: str, config_dirs: list[Path], seen: set[str]) -> Iterator[tuple[str, str]]:
    """The groups and keys of a recipe of the user's, and of those that it begins with; nothing of a shipped one."""
    file = options_of(_RECIPE, config_dirs).get(name)
    if name in seen or (file is not None and CONFIGS in file.parents):
        return
    seen.add(name)
    tree = _beside_own_recipe(name) if file is None else read_yaml(file)
    for entry in tree.pop("defaults", None) or []:
        if isinstance(entry, Mapping):
            yield from (("group", str(key).removeprefix("override ").strip().lstrip("/")) for key in entry)
        elif entry != "_self_":
            yield from _in_recipe(str(entry).lstrip("/"), config_dirs, seen)
    yield from (("key", key) for key, _ in leaves(tree))


def _beside_own_recipe(option: str) -> dict[Any, Any]:
    """The values of a recipe that is named by its file, as Hydra was told them (cli/own_recipe.py)."""
    known = ConfigStore.instance().repo.get(_RECIPE, {})
    node = known.get(f"{option}.yaml") if isinstance(known, dict) else None
    tree: Any = OmegaConf.to_container(node.node) if node is not None else {}
    return tree if isinstance(tree, dict) else {}
