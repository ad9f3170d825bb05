"""One run on two processes, started by `launch.num_processes=2`, beside the same run on one, with all speed-ups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_models
from runs import ALL_ON, SHORT, steps, weights
from short_runs import short_run

WORDS = [
    *(w for w in SHORT if not w.startswith(("eval.evaluators", "train.max_steps", "train.save_steps", "export"))),
    "train.max_steps=2", "train.learning_rate=1e-2", "eval.evaluators=[answers,held_out_loss]", "train.save_steps=2",
    "export=none", "eval.max_new_tokens=16", *ALL_ON,
]  # fmt: skip


def command(*words: str, processes: int = 2) -> list[str]:
    return [sys.executable, "-m", "gemma_tune", "recipe=lora_sft", *words, f"launch.num_processes={processes}"]


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Losses, weights, every answer and every figure; each file and each line once.

    Gemma 4 doesn't scale the scores of its attention, so sums in another order, as those of other batches, are some
    1e-6 apart after a step of this size.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    model = f"model.model_name_or_path={small_models.save('gemma4_e2b', tmp_path / 'model')}"
    words = [*WORDS, model, "train.per_device_train_batch_size=4", f"output_dir={two}"]
    done = subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    short_run("lora_sft", one, *WORDS, model, "train.per_device_train_batch_size=8", steps=2)
    expected, found = steps(one), steps(two)
    for name in ("loss", "grad_norm", "num_tokens"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], rel=5e-6, abs=1e-6)
    ones, twos = (weights(folder / "checkpoints" / "step-2") for folder in (one, two))
    assert all((value - twos[key]).abs().max().item() <= 1e-5 for key, value in ones.items())
    for when in ("before", "after"):
        mine, theirs = (json.loads((f / "eval" / f"{when}.json").read_text("utf-8")) for f in (one, two))
        assert mine["answers"] == theirs["answers"]
        assert mine["figures"] == pytest.approx(theirs["figures"], rel=1e-5)
        assert mine["rows"].keys() == theirs["rows"].keys()
        for name, rows in mine["rows"].items():
            assert [row["id"] for row in rows] == [row["id"] for row in theirs["rows"][name]]
            assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in theirs["rows"][name]])

    said = done.stdout.splitlines()
    assert len([line for line in said if line.startswith("lora_sft: ")]) == 1
    assert done.stderr.count("evaluating: before") == 1 and "Warning" not in done.stderr
    there = {str(p.relative_to(two)) for p in two.rglob("*") if p.is_file()}
    alone = {str(p.relative_to(one)) for p in one.rglob("*") if p.is_file()}
    states = {f"checkpoints/step-2/rng_state{n}.pth" for n in ("", "_0", "_1")}
    assert there - states - {"loss.png"} == alone - states
    assert json.loads((two / "result.json").read_text("utf-8"))["reason"] is None
    stored = (two / "config.yaml").read_text("utf-8")
    assert "num_processes: 2" in stored and "num_nodes: 1" in stored
