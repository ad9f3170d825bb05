"""`make figures-images`: the embedded model with an image tower learns to read a meter, in three seeds.

Written to docs/benchmarks/. Each run is a process of its own, with the command line a user would type.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import DOCS, conditions, conditions_line, table

SEEDS = (42, 1, 2)
_WORDS = ["recipe=qlora_sft", "model=tiny_vision", "data=sample_images", "tracker=none"]


def run(seed: int, folder: Path) -> dict[str, Any]:
    """One training with the defaults; the seconds are those of the clock and of the processors."""
    begun, used = time.perf_counter(), os.times()
    words = [*_WORDS, f"seed={seed}", f"output_dir={folder}"]
    subprocess.run([sys.executable, "-m", "gemma_tune", *words], check=True, stdout=subprocess.DEVNULL)
    ended = os.times()
    result = json.loads((folder / "result.json").read_text("utf-8"))
    processor = sum(ended[2:4]) - sum(used[2:4])
    clock = time.perf_counter() - begun
    return {"seed": seed, "wall_seconds": clock, "processor_seconds": processor, **result}


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    before, after = (found["metrics"][when]["test_exact_match"] for when in ("before", "after"))
    seconds = f"{found['seconds']['train']:.0f} | {found['wall_seconds']:.0f} | {found['processor_seconds']:.0f}"
    return f"| {found['seed']} | {before:.1%} | {after:.1%} | {seconds} |"


def main() -> None:
    """Runs every seed, and writes the page."""
    with tempfile.TemporaryDirectory() as scratch:
        runs = [run(seed, Path(scratch) / str(seed)) for seed in SEEDS]
    report = {**conditions(), "runs": runs}
    head = ["seed", "exact match before", "after", "training s", "whole command s", "processor s"]
    lines = [
        "# Learning to read a meter from pictures",
        "",
        f"Made by `make figures-images` on {conditions_line(report)} `recipe=qlora_sft model=tiny_vision "
        "data=sample_images` with its defaults: tower, projector and adapter are trained on 2,400 pictures of meters "
        "with four digits, each seen once, and asked about 200 others. Before training no answer is exact, but half "
        "of them repeat the right number without an end: the tower knows single digits, and training teaches the rest "
        "and the form of the answer ([data/README.md](../../data/README.md#the-embedded-model-with-an-image-tower)).",
        "",
        table(head, [*map(row, runs)]),
        "",
        "Required: at least 90 % in at most three minutes on two cores.",
        "",
    ]
    (DOCS / "images.md").write_text("\n".join(lines), encoding="utf-8")
    (DOCS / "images.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
