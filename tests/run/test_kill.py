"""Killed while it trains: the same command goes on, and ends where the run ends that nobody killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from short_runs import SHORT, losses, metrics, short_run

WORDS = ["train.save_steps=1", "export=none", "eval.before=false", "eval.evaluators=[]", "eval.num_samples=0"]
STEPS = 8


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = {w.split("=", 1)[0]: w for w in [*SHORT, *WORDS, f"train.max_steps={STEPS}", f"output_dir={killed}"]}
    process = subprocess.Popen(
        [sys.executable, "-m", "gemma_tune", "recipe=lora_sft", *words.values()],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any((killed / "checkpoints").glob("step-[2-7]")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "adapter").exists()
    short_run("lora_sft", killed, *WORDS, steps=STEPS)
    assert "goes on with the interrupted run, from step" in capsys.readouterr().out
    short_run("lora_sft", whole, *WORDS, steps=STEPS)
    one, other = (f / "adapter" / "adapter_model.safetensors" for f in (whole, killed))
    assert one.read_bytes() == other.read_bytes()
    assert losses(killed) == losses(whole) and len(losses(killed)) == STEPS
    means = [[line["train_loss"] for line in metrics(f) if "train_loss" in line] for f in (killed, whole)]
    assert means[0] == means[1] == [pytest.approx(sum(losses(whole)) / STEPS)]  # of all steps
    shutil.rmtree(tmp_path / "killed")
