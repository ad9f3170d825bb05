"""`dry_run=true` of recipes that measure a model: what would be measured, and on how many rows."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from gemma_tune.config import Config
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.only_printed import printed
from gemma_tune.run.result import RunResult
from gemma_tune.steps.data import test_notes
from gemma_tune.steps.measure_only import Measurement


def dry_run_of_measuring(cfg: Config, folder: RunFolder, recipe: Any) -> RunResult:
    """Prints the resolved configuration and how many rows there are; writes nothing.

    Args:
        cfg: The configuration.
        folder: The run folder, which isn't made.
        recipe: The recipe's module, whose `read` gives what is measured.

    Raises:
        UserError: The model or the data can't be used.
    """
    found = (getattr(one, "asked", one) for one in recipe.read(cfg, folder))
    asked = next((one for one in found if isinstance(one, Measurement)), None)
    if asked is None:  # runs that have measured themselves are compared
        return RunResult(cfg.recipe, status="dry_run")
    console = Console(highlight=False, soft_wrap=True)
    console.print(asked.rows, markup=False)
    printed(cfg)
    rows = {"held_out": asked.held_out.counts()["rows"], **{name: len(rows) for name, rows in asked.tests.items()}}
    for name, number in rows.items():
        console.print(f"Rows, {name.replace('_', ' ')}: {number:,}", markup=False)
    for note in [*asked.held_out.notes("held-out rows"), *test_notes(asked.tests)]:
        console.print(note, markup=False)
    console.print("No weight was loaded: dry_run=true.")
    return RunResult(cfg.recipe, status="dry_run", metrics={"rows": rows})
