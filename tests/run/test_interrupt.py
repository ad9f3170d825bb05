"""Ctrl-C in the middle of a run: a folder that says so, and no half file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_tune.run.paths import ASSETS, atomic_folder

WORDS = ["tracker=none", "data=messages", f"data.train_file={ASSETS / 'sample' / 'train.jsonl'}", "eval=none"]
FEW = ["data.max_train_samples=64", "data.max_eval_samples=4", "eval.num_samples=1", "eval.max_new_tokens=8"]


def hear() -> None:
    """Where tests run in the background Ctrl-C is ignored, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(
    folder: Path, when: Callable[[], bool], *words: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Starts a run in a process of its own and presses Ctrl-C as soon as `when` holds."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, "-m", "gemma_tune", "recipe=lora_sft", *WORDS, f"output_dir={folder}", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=hear
    )
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def test_while_training(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    done = interrupted(
        folder, lambda: any(checkpoints.glob("step-*")), "train.save_steps=1", "train.max_steps=200", *FEW
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert "gemma_tune: interrupted." in done.stderr and "resume_from_checkpoint=latest resumes it" in done.stderr
    assert json.loads((folder / "result.json").read_text("utf-8"))["status"] == "interrupted"
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml", "result.json", "manifest.json", "metrics.jsonl", "checkpoints", "eval",
    }  # fmt: skip
    for step in checkpoints.iterdir():  # each is whole
        assert step.name.startswith("step-")
        assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"} <= {p.name for p in step.iterdir()}
    for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines():
        json.loads(line)


@pytest.mark.slow
def test_while_rows_are_rendered(tmp_path: Path) -> None:
    """There is no folder yet, and nothing is left of the rows."""
    file, folder, cache = tmp_path / "rows.jsonl", tmp_path / "run", tmp_path / "cache"
    file.write_text((ASSETS / "sample" / "train.jsonl").read_text("utf-8") * 20, encoding="utf-8")
    done = interrupted(
        folder,
        lambda: any(cache.glob("gemma_tune-*/rows.arrow")),
        f"data.train_file={file}",
        HF_DATASETS_CACHE=str(cache),
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert not folder.exists() and not any(cache.glob("gemma_tune-*"))


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "merged") as target:
        target.mkdir()
        (target / "half").touch()
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "merged") as target:
            target.mkdir()
            (target / name).touch()
        assert [p.name for p in (tmp_path / "merged").iterdir()] == [name]
