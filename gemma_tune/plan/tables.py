"""Plans in the terminal, in 80 columns, and as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma_tune.models.estimate.memory import in_unit
from gemma_tune.page.blocks import Block, Code, Heading, Section
from gemma_tune.page.blocks import Table as TableBlock
from gemma_tune.page.blocks import Text as TextBlock
from gemma_tune.page.markdown import markdown
from gemma_tune.plan.fits import SIZES, PlannedRun
from gemma_tune.plan.speed import Speed, hours, in_words
from gemma_tune.run.manifest import atomic_write

LEGEND = "L: with adapter=lora; Q: with adapter=lora model.load_in_4bit=true; –: does not fit; no: not for this family."


def print_matrix(out: Console, title: str, recipes: Sequence[str], rows: Sequence[tuple[str, str, list[str]]]) -> None:
    """Prints a table of models by recipes.

    Args:
        out: Where to.
        title: Above it.
        recipes: The columns.
        rows: The model's name, its parameters, and a cell for each recipe.
    """
    out.print(title, style="italic", markup=False)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("model", "size", *recipes):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for name, size, cells in rows:
        table.add_row(Text(name), size, *cells)
    out.print(table)


def parameters(number: int) -> str:
    """`268M`, `4.3B`."""
    return f"{number / 1e6:.0f}M" if number < 999.5e6 else f"{number / 1e9:.1f}B"


def smallest_gpu_cell(found: tuple[int, PlannedRun] | None, here: PlannedRun) -> str:
    """The least memory of a run, with ✓ where it fits on this machine."""
    if here.refused:
        return "no"
    least = f"{found[0]}{found[1].mark}" if found else "–"
    return f"{least}{' ✓' if here.fitted else '  '}"


def memory_cell(run: PlannedRun) -> str:
    """The GiB of a run, with * where its batches or rows are smaller than by default."""
    if run.refused:
        return "no"
    if run.fitted is None:
        return "–"
    return f"{run.fitted.memory['total']:.1f}{run.mark}{'*' if run.smaller else ''}"


def settings(run: PlannedRun) -> str:
    """Batch, length and what saves memory, in words."""
    assert run.fitted
    cfg, t = run.fitted.cfg, run.fitted.cfg.train
    weights = "4-bit" if cfg.model.load_in_4bit else str(cfg.model.dtype)
    kind = "all weights" if cfg.adapter.peft_type == "none" else f"LoRA r={cfg.adapter.r} over"
    kind = f"{kind} in {weights}" if cfg.adapter.peft_type == "none" else f"{kind} {weights} weights"
    batch = f"batch {t.per_device_train_batch_size} × {t.gradient_accumulation_steps}"
    packed = ", packed" if t.packing else ""
    recomputed = ", gradient checkpointing" if t.gradient_checkpointing else ""
    return f"{kind}; {batch}, up to {t.max_length:,} tokens{packed}{recomputed}"


def time_of(run: PlannedRun, speed: Speed | None) -> str | None:
    """The time for a million tokens, marked as an estimate; None where it isn't known."""
    if speed is None or run.fitted is None:
        return None
    found = hours(run.fitted.cfg, run.model.size, speed)
    return None if found is None else in_words(found)


def print_runs(out: Console, runs: Sequence[PlannedRun], speed: Speed | None) -> None:
    """Prints each run with its memory, settings, time and command."""
    for run in runs:
        out.print()
        if run.fitted is None:
            why = run.refused or "no setting tried here makes it fit"
            out.print(f"{run.recipe}: {why}", markup=False)
            continue
        memory = run.fitted.memory
        parts = ", ".join(f"{name} {in_unit(gib)}" for name, gib in memory.items() if name != "total" and gib)
        time = time_of(run, speed)
        out.print(Text(f"{run.recipe}: {in_unit(memory['total'])}", style="bold").append(f" ({parts})", "not bold"))
        out.print(f"  {settings(run)}{f'; {time} for a million tokens' if time else ''}", markup=False)
        out.print(f"  {run.command}", markup=False, soft_wrap=True)


def rows_of(runs: Sequence[PlannedRun], speed: Speed | None) -> list[dict[str, Any]]:
    """Runs as JSON has them; memory in GiB."""
    return [
        {
            "model": run.model.name,
            "recipe": run.recipe,
            "fits": run.fitted is not None,
            "refused": run.refused,
            "memory_gib": run.fitted.memory if run.fitted else None,
            "settings": run.words,
            "hours_per_million_tokens": hours(run.fitted.cfg, run.model.size, speed) if run.fitted and speed else None,
            "command": run.command if run.fitted else None,
        }
        for run in runs
    ]


def write(
    file: Path, said: Sequence[str], runs: Sequence[PlannedRun], speed: Speed | None, least: dict[str, dict[str, Any]]
) -> None:
    """Writes a plan as JSON or Markdown, by the file's name.

    Args:
        file: Where to.
        said: What it is planned for, in lines.
        runs: The runs.
        speed: Where times come from.
        least: By model and recipe, the least of `SIZES` that fits; empty where one memory is planned for.
    """
    if file.suffix.lower() == ".json":
        tree = {"planned_for": list(said), "speed": speed and speed.said, "least_gb": least} | {
            "runs": rows_of(runs, speed)
        }
        atomic_write(file, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
        return
    blocks: list[Block] = [TextBlock(line) for line in said]
    if least:
        head = ["model", *next(iter(least.values()))]
        names = [[model, *(str(gb or "–") for gb in row.values())] for model, row in least.items()]
        blocks += [Heading(f"Least memory in GB, of {', '.join(map(str, SIZES))}", ""), TableBlock(head, names)]
    head = ["model", "recipe", "memory", "time of a million tokens", "settings"]
    fitting = [run for run in runs if run.fitted]
    table = [
        [run.model.name, run.recipe, in_unit(run.fitted.memory["total"]), time_of(run, speed) or "–", settings(run)]
        for run in fitting
        if run.fitted
    ]
    commands = Code("\n".join(run.command for run in fitting), "sh")
    sections = [Section("", blocks), Section("What fits", [TableBlock(head, table, texts=True), commands])]
    atomic_write(file, "\n".join(markdown("Plan", sections)))
