"""`make figures-rl`: what the embedded model learns from rewards and preferences, on test and validation sets.

Written to docs/benchmarks/. Each run is a process of its own, with the command line a user would type.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import DOCS, conditions, conditions_line, table

from gemma_tune.evals.statistics import interval, paired_test

# By name: the words, the figure, and the seeds.
RUNS: dict[str, tuple[list[str], str, tuple[int, ...]]] = {
    "grpo": (["recipe=grpo"], "test_math", (42, 1, 2)),
    "grpo, LoRA": (["recipe=grpo", "adapter=lora"], "test_math", (42,)),
    "grpo, QLoRA": (["recipe=grpo", "adapter=lora", "model.load_in_4bit=true"], "test_math", (42,)),
    "dpo": (["recipe=dpo"], "preference_accuracy", (42, 1, 2)),
    "kto": (["recipe=kto"], "preference_accuracy", (42, 1)),
    "kto, LoRA": (["recipe=kto", "adapter=lora"], "preference_accuracy", (42,)),
    "reward_model": (["recipe=reward_model"], "reward_accuracy", (42,)),
    "reward_model, LoRA": (["recipe=reward_model", "adapter=lora"], "reward_accuracy", (42,)),
}


def run(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run, measured."""
    words, _, _ = RUNS[name]
    start = time.perf_counter()
    command = [sys.executable, "-m", "gemma_tune", *words, f"seed={seed}", "tracker=none", f"output_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return measured(name, seed, folder, time.perf_counter() - start)


def measured(name: str, seed: int, folder: Path, took: float) -> dict[str, Any]:
    """A run's result.json, the wall seconds of the whole command, and the figure with its intervals."""
    figure = RUNS[name][1]
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    scores = []
    for when in ("before", "after"):
        rows = json.loads((folder / "eval" / f"{when}.json").read_text("utf-8"))["rows"][figure]
        scores.append({row["id"]: row["score"] for row in rows})
    before, after = ([side[i] for i in scores[0]] for side in scores)
    moved = paired_test(after, before).difference
    sides = [vars(interval(side)) for side in (before, after)]
    return {"name": name, "seed": seed, "figure": figure, "wall_seconds": round(took, 1), **result,
            "intervals": [*sides, vars(moved)]}  # fmt: skip


def row(found: dict[str, Any]) -> str:
    before, after, moved = found["intervals"]
    said = [f"{x['mean']:.1%} ({x['low']:.1%}–{x['high']:.1%})" for x in (before, after)]
    points = f"{100 * moved['mean']:+.1f} ({100 * moved['low']:+.1f} to {100 * moved['high']:+.1f})"
    cells = [
        found["name"], str(found["seed"]), found["figure"], *said, points, f"{found['metrics']['steps']:,}",
        f"{found['wall_seconds']:.0f}", f"{found['peak_memory_mb']:,.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            run(name, seed, Path(scratch) / f"{number}-{seed}")
            for number, (name, (_, _, seeds)) in enumerate(RUNS.items())
            for seed in seeds
        ]
    write({**conditions(), "runs": runs})


def write(report: dict[str, Any]) -> None:
    """Writes the page and the figures behind it."""
    head = [
        "recipe", "seed", "metric", "before", "after", "points", "steps", "whole command s", "peak memory MiB",
    ]  # fmt: skip
    lines = [
        "# What the embedded model learns from rewards and preferences",
        "",
        f"Made by `make figures-rl` on {conditions_line(report)} `python -m gemma_tune recipe=… seed=…` with defaults. "
        "`grpo`: 300 problems of two numbers that are in no training text; `dpo`, `kto` and `reward_model`: 200 pairs "
        "whose prompts are in no training pair. 95 % intervals are in brackets; the difference is paired, row by row.",
        "",
        table(head, [*map(row, report["runs"])]),
        "",
    ]
    (DOCS / "rl-accuracy.md").write_text("\n".join(lines), encoding="utf-8")
    (DOCS / "rl-accuracy.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
