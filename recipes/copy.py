"""A recipe as two files of the user's own: `copy`. Nothing is loaded."""

from __future__ import annotations

from gemma_tune.config import Config
from gemma_tune.run.recipe_copy import copied, write_both
from gemma_tune.run.result import RunResult


def run(cfg: Config) -> RunResult:
    """Writes the steps and the values. There is no run folder; `artifacts` of the result names the files."""
    steps, values, command = copied(cfg.copy)
    if cfg.dry_run:
        print(f"Would write {steps.path} and {values.path}; nothing was written: dry_run=true.")
        return RunResult(cfg.recipe, status="dry_run")
    write_both(steps, values)
    print(f"{steps.path}: the steps, as of recipe={cfg.copy.recipe}")
    print(f"{values.path}: the values")
    print(f"Next: {command} dry_run=true")
    print(f"      {command}")
    artifacts = {"steps": str(steps.path), "values": str(values.path)}
    return RunResult(cfg.recipe, status="finished", artifacts=artifacts)
