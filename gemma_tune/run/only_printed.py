"""The configuration as text, for `dry_run=true`. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, fields

import yaml
from rich.console import Console

from gemma_tune.config import Config
from gemma_tune.run.result import RunResult


def as_yaml(cfg: Config) -> str:
    """The resolved configuration; each value as it would be used."""
    tree = asdict(cfg)
    for f in fields(cfg.serve):
        if f.metadata["secret"] and tree["serve"][f.name] is not None:
            tree["serve"][f.name] = "(not shown)"
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).rstrip()


def printed(cfg: Config) -> Console:
    """A console, with the resolved configuration on it."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(as_yaml(cfg), markup=False)
    return console


def only_printed(cfg: Config, console: Console, said: str) -> RunResult:
    """Prints the configuration and what was not done, of a recipe that has nothing else to say beforehand."""
    console.print(as_yaml(cfg), markup=False)
    console.print(f"{said}: dry_run=true.", markup=False)
    return RunResult(cfg.recipe, status="dry_run")
