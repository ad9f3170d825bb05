"""Checks the YAML files that the user keeps with `--config-dir`, where Hydra would silently ignore a mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gemma_tune.run.paths import CONFIGS
from gemma_tune.untrusted import MIB, check_yaml, read_bytes, yaml_fault
from gemma_tune.validation.choices import options_of
from gemma_tune.validation.commandline import too_many_references
from gemma_tune.validation.schema import GROUPS, problems_of_tree
from gemma_tune.validation.suggest import did_you_mean, other_option

EXAMPLE = """\
    # @package _global_
    defaults: [qlora_sft, {override /adapter: dora}, _self_]
    train: {learning_rate: 1e-4}"""


def _layout_problems(root: Path) -> list[str]:
    found = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))):
        if folder.name not in GROUPS and list(folder.glob("*.yaml")):
            found.append(f"{folder}: there is no group of that name.{did_you_mean(folder.name, GROUPS)}")
            continue
        for file in sorted(folder.glob("*.yaml")):
            if (CONFIGS / folder.name / file.name).is_file():
                found.append(
                    f"{file}: a shipped {folder.name} has this name, and Hydra would ignore yours; "
                    f"rename it, for example to {file.with_name('my_' + file.name)}."
                )
    return found


def _defaults_of(tree: dict[str, Any]) -> list[str]:
    return [e for e in tree.get("defaults", []) if isinstance(e, str) and e != "_self_"]


def _override_problems(tree: dict[str, Any], file: Path, config_dirs: list[Path], seen: set[Path]) -> list[str]:
    found = []
    for entry in tree.get("defaults", []):
        for words, option in entry.items() if isinstance(entry, dict) else ():
            group = str(words).removeprefix("override ").strip().lstrip("/")
            if group.startswith("hydra"):
                continue
            if group not in GROUPS:
                found.append(f"{file}: defaults: there is no group `{group}`.{did_you_mean(group, GROUPS)}")
            elif str(words) != f"override /{group}":
                found.append(f"{file}: defaults: write {{override /{group}: {option}}} in place of `{words}`.")
            elif str(option) not in (options := options_of(group, config_dirs)):
                found.append(
                    f"{file}: defaults: there is no {group} `{option}`.{other_option(group, str(option), options)}"
                )
            else:
                found += _file_problems(group, str(option), config_dirs, seen)
    return found


def _file_problems(group: str, name: str, config_dirs: list[Path], seen: set[Path]) -> list[str]:
    file = options_of(group, config_dirs).get(name)
    if file is None or file in seen or CONFIGS in file.parents:
        return []
    seen.add(file)
    return _problems_of(file, group, config_dirs, seen)


def _problems_of(file: Path, group: str, config_dirs: list[Path], seen: set[Path]) -> list[str]:
    options = options_of(group, config_dirs)
    try:
        text = read_bytes(file, MIB).decode("utf-8")
        check_yaml(text)
        tree: Any = OmegaConf.to_container(OmegaConf.create(text))  # reads 1e-4 and twice the same key as Hydra does
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:
        return [yaml_fault(file, error)]
    except OSError as error:
        return [f"{file}: the file can't be read ({error.strerror})."]
    if problem := too_many_references(tree, str(file)):
        return [problem]
    if not isinstance(tree, dict) or not tree:
        return [f"{file}: this holds no keys; for example:\n{EXAMPLE}"]
    if group == "recipe" and not re.search(r"^#\s*@package\s+_global_\s*$", text, re.MULTILINE):
        return [
            f"{file}: the first line must be `# @package _global_`; without it every value would be ignored. "
            f"For example:\n{EXAMPLE}"
        ]
    if not isinstance(tree.get("defaults", []), list):
        return [f"{file}: defaults must be a list; for example:\n{EXAMPLE}"]
    found = _override_problems(tree, file, config_dirs, seen)
    for parent in _defaults_of(tree):
        if parent.lstrip("/") not in options:
            found.append(f"{file}: defaults: there is no {group} `{parent}`.{other_option(group, parent, options)}")
        else:
            found += _file_problems(group, parent, config_dirs, seen)
    values = {k: v for k, v in tree.items() if k not in ("defaults", "hydra")}
    return found + problems_of_tree(values if group == "recipe" else {group: values}, str(file))


def problems_of_files(chosen: dict[str, list[str]], config_dirs: list[Path]) -> list[str]:
    """All problems of the folders' layout, and of the files that this run uses.

    Args:
        chosen: For each group named on the command line, its options.
        config_dirs: The folders of `--config-dir`; missing ones are ignored here.
    """
    roots = [d for d in config_dirs if d.is_dir()]
    found = [p for root in roots for p in _layout_problems(root)]
    seen: set[Path] = set()
    for group, names in chosen.items():
        for name in names:
            found += _file_problems(group, name, roots, seen)
    return found


def problems_of_recipe(file: Path, config_dirs: list[Path]) -> list[str]:
    """All problems of the values of a recipe of the user's own, and of the files that they choose."""
    return _problems_of(file, "recipe", [d for d in config_dirs if d.is_dir()], {file})
