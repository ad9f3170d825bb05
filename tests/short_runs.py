"""Short real runs on the embedded model, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gemma_tune

# Small enough for a few seconds, large enough to show a wrong number.
SHORT = [
    "model=tiny",
    "model.dtype=float32",
    "tracker=none",
    "train.learning_rate=1e-3",
    "train.per_device_train_batch_size=4",
    "data.max_train_samples=64",
    "data.max_eval_samples=8",
    "eval.evaluators=[held_out_loss]",
    "eval.num_samples=2",
    "eval.max_new_tokens=16",
]


def short_run(recipe: str, folder: Path, *overrides: str, steps: int = 3) -> gemma_tune.RunResult:
    """Runs a recipe for a few steps into `folder`; later overrides win."""
    words = {w.split("=", 1)[0]: w for w in [*SHORT, f"train.max_steps={steps}", f"output_dir={folder}", *overrides]}
    return gemma_tune.run(recipe, list(words.values()))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[float]:
    """The training losses, step by step."""
    return [line["loss"] for line in metrics(folder) if "loss" in line]
