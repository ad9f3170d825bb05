"""`make figures-sample`: the sample task on the embedded model, each recipe with its defaults.

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

SEEDS = {"qlora_sft": (42, 1, 2), "lora_sft": (42,), "full_sft": (42,)}
NAMES = {"test": "test", "new_phrasings": "new phrasings"}


def run(recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run; its result.json, and the wall seconds of the whole command."""
    words = [f"recipe={recipe}", f"seed={seed}", "tracker=none", f"output_dir={folder}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gemma_tune", *words], check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return {"recipe": recipe, "seed": seed, "wall_seconds": round(time.perf_counter() - start, 1), **result}


def row(result: dict[str, Any]) -> str:
    before, after, export = (result["metrics"][k] for k in ("before", "after", "export"))
    cells = [result["recipe"], str(result["seed"])]
    for name in NAMES:
        key = f"{name}_exact_match"
        cells.append(f"{before[key]:.1%} → {after[key]:.1%}")
    cells += [f"{export['test_exact_match']:.1%}", f"{export['test_stopped']:.1%}"]
    cells += [f"{result['seconds']['train']:.0f}", f"{result['wall_seconds']:.0f}", f"{result['peak_memory_mb']:,.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = [run(r, seed, Path(scratch) / f"{r}-{seed}") for r, seeds in SEEDS.items() for seed in seeds]
    rows = runs[0]["metrics"]["after"]
    report = {**conditions(), "runs": runs}
    head = [
        "recipe", "seed", *NAMES.values(), "exported: test", "exported: stopped", "training s", "whole command s",
        "peak memory MiB",
    ]  # fmt: skip
    lines = [
        "# The sample task on the embedded model",
        "",
        f"Made by `make figures-sample` on {conditions_line(report)} "
        "`python -m gemma_tune recipe=… seed=…` with defaults; one epoch over "
        f"{runs[0]['metrics']['data']['training']['rows']:,} rows.",
        "",
        f"Exact match of the call, before → after, on {rows['test_rows']} rows with unseen combinations of phrasing "
        f"and value, and on {rows['new_phrasings_rows']} with unseen phrasings; then the exported model "
        "(`export/merged`), loaded again, on the test rows of the first kind, and the share of its answers there that "
        "ended by themselves.",
        "",
        table(head, [*map(row, runs)]),
        "",
    ]
    (DOCS / "sample-task.md").write_text("\n".join(lines), encoding="utf-8")
    (DOCS / "sample-task.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
