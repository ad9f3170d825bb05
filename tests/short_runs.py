"""Short real runs on the embedded model, for the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import gemma_tune

GOLDEN = Path(__file__).parent / "recipes" / "golden.json"
# Small enough for a few seconds, large enough to show a wrong number.
SHORT = [
    "model=tiny",
    "model.dtype=float32",
    "tracker=none",
    "train.learning_rate=1e-3",
    "train.per_device_train_batch_size=2",
    "data.max_train_samples=64",
    "data.max_eval_samples=4",
    "eval.evaluators=[held_out_loss]",
    "eval.num_samples=1",
    "eval.max_new_tokens=8",
]


def short_run(
    recipe: str, folder: Path, *overrides: str, steps: int = 3, picture: bool = False
) -> gemma_tune.RunResult:
    """Runs a recipe for a few steps into `folder`; later overrides win.

    Without `picture` no loss.png is drawn, which would take a fifth of a short run.
    """
    words = {w.split("=", 1)[0]: w for w in [*SHORT, f"train.max_steps={steps}", f"output_dir={folder}", *overrides]}
    with pytest.MonkeyPatch.context() as patch:
        if not picture:
            patch.setattr("gemma_tune.report.draw_curves", lambda panels, file: None)
        return gemma_tune.run(recipe, list(words.values()))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[float]:
    """The training losses, step by step."""
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def hold_to_golden(name: str, folder: Path) -> None:
    """No loss, gradient norm or reward of a run is moved by refactoring.

    `GEMMA_TUNE_WRITE_GOLDEN=1` writes the file anew, to be read before it is committed. The tolerances are for other
    processors' order of summation, nothing else; the loss of GRPO and RLOO is 0 but for rounding.
    """
    lines = [line for line in metrics(folder) if "loss" in line]
    made = {key: [line[key] for line in lines if key in line] for key in ("loss", "grad_norm", "reward")}
    made = {key: values for key, values in made.items() if values}
    if os.environ.get("GEMMA_TUNE_WRITE_GOLDEN"):
        golden = {**json.loads(GOLDEN.read_text("utf-8")), name: made}
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text("utf-8"))[name]
    assert made.keys() == golden.keys()
    for key, values in golden.items():
        assert made[key] == pytest.approx(values, rel=1e-4 if key == "loss" else 1e-3, abs=1e-6), key
