"""What the command line says of itself: its version, and one recipe (`recipe=NAME --help`)."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import textwrap
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gemma_tune.config import Config
from gemma_tune.config.methods import Kind, Method, Reads, named_method
from gemma_tune.nested import leaves
from gemma_tune.untrusted import read_yaml

_LIBRARIES = ("torch", "transformers", "trl", "peft")
# The keys that people set most often, of all trainings and of those with adapters
_TRAINING = (
    "model.model_name_or_path", "data.train_file", "data.validation_file", "data.test_files", "train.learning_rate",
    "train.num_train_epochs", "train.max_steps", "train.max_length", "train.per_device_train_batch_size", "adapter.r",
    "output_dir", "seed",
)  # fmt: skip
_MEASURING = ("model.model_name_or_path", "data.test_files", "data.validation_file", "eval.evaluators", "output_dir")
_EXPORTING = ("model.model_name_or_path", "export.formats", "quant.grid", "output_dir")
_MORE = {"rewarded": ("reward.functions", "train.num_generations", "train.max_completion_length")}


def version() -> str:
    """`gemma_tune 0.1.0 (Python 3.11.7, torch 2.13.0, …)`, without importing any of them."""
    parts = [f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            parts.append(f"no {name}")
    from gemma_tune import __version__

    return f"gemma_tune {__version__} ({', '.join(parts)})"


def recipe_page(name: str, file: Path, options: Mapping[str, Path]) -> str:
    """What a recipe does, how it is called, what it sets, and its keys.

    Args:
        name: The recipe.
        file: Its YAML file, whose comment says what it does.
        options: All recipes; one may build on another.
    """
    text = file.read_text(encoding="utf-8")
    comment = [line[1:].removeprefix(" ") for line in text.splitlines() if re.match(r"#(?! @package)", line)]
    lines = [f"recipe={name}", "", *comment, ""]
    values = _read(file)
    method = _method(values, options)
    entries = [entry for entry in values.get("defaults") or [] if isinstance(entry, dict)]
    chosen = [f"{_group(group)}={option}" for entry in entries for group, option in entry.items()]
    chosen += [f"{key}={_plain(value)}" for key, value in leaves(values) if key not in ("defaults", "method")]
    if chosen:
        lines += [*_wrapped("Sets: ", "  ".join(chosen)), ""]
    if method is not None:
        lines += [*_wrapped("Reads: ", method.reads.value), ""]
    lines += ["Keys (docs/configuration.md lists all, with their defaults):", *_key_lines(keys_of(method))]
    return "\n".join([*lines, "", _dry_run(name, method)])


def _dry_run(name: str, method: Method | None) -> str:
    """How to check a command of this recipe; one that needs more keys can't be tried by its name alone."""
    if method is None or method.trains:
        return f"Settings and rows are checked by: python -m gemma_tune recipe={name} dry_run=true"
    checks = "shows the settings" if method.reads is Reads.NOTHING else "checks settings and rows"
    return f"dry_run=true, added to a command, {checks} and does nothing else."


def _read(file: Path) -> dict[str, Any]:
    try:
        stored = read_yaml(file)
    except (OSError, ValueError):  # said where it is composed
        return {}
    return stored if isinstance(stored, dict) else {}


def _method(values: Mapping[str, Any], options: Mapping[str, Path], steps: int = 5) -> Method | None:
    """The method of a recipe, or of the one that it builds on."""
    if (found := named_method(values)) or not steps:
        return found
    parents = [entry for entry in values.get("defaults") or [] if isinstance(entry, str) and entry in options]
    return _method(_read(options[parents[0]]), options, steps - 1) if parents else None


def keys_of(method: Method | None) -> list[str]:
    """The keys that matter most to a method: those of its own group, or of what it does."""
    if method is None:
        return list(_TRAINING)
    if method.group:
        own = [f"{method.group}.{f.name}" for f in dataclasses.fields(getattr(Config(), method.group))]
        if method.reads is Reads.NOTHING:
            return [*own, *(key for key in method.beside_group if "." in key)]
        return [*own, *(() if method.kind is Kind.COMPARE else ("model.model_name_or_path",))]
    if not method.trains:
        return list(_EXPORTING if method.kind is Kind.EXPORT else _MEASURING)
    return [*_TRAINING, *(_MORE["rewarded"] if method.rewarded else ()), *(("quant.grid",) if method.quantizes else ())]


def _key_lines(keys: list[str]) -> list[str]:
    width = max(map(len, keys))
    return [f"  {key.ljust(width)}  {textwrap.shorten(_meaning(key), 118 - width, placeholder=' …')}" for key in keys]


def _meaning(key: str) -> str:
    part: Any = Config()
    *above, last = key.split(".")
    for name in above:
        part = getattr(part, name)
    found = next(f for f in dataclasses.fields(part) if f.name == last)
    return re.split(r"(?<=[.;:]) ", found.metadata["help"])[0].rstrip(";:.")


def _group(entry: str) -> str:
    return entry.removeprefix("override ").lstrip("/")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _wrapped(begin: str, text: str) -> list[str]:
    return textwrap.wrap(text, 118, initial_indent=begin, subsequent_indent=" " * len(begin), break_on_hyphens=False)
