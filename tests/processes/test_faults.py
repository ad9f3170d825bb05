"""One of two processes raises, dies, hangs or gets NaN: all end, one message, no half file, and the run goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import SHORT, weights

from gemma_tune.run.checkpoints import checkpoints, damage

# At the third step of the process BAD_RANK
LOSS = """
import os, signal, time, torch

steps = 0

def loss(outputs, labels, num_items_in_batch=None):
    global steps
    steps += 1
    logits = outputs.logits[:, :-1].flatten(0, 1)
    value = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    value = value / num_items_in_batch
    time.sleep(float(os.environ.get("SLOW", "0")))
    fault = os.environ.get("FAULT")
    if fault is None or os.environ.get("RANK") != os.environ.get("BAD_RANK") or steps != 3:
        return value
    if fault == "raise":
        raise ValueError("no such thing")
    if fault == "hang":
        time.sleep(10_000)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return value * float("nan")
"""
SAID = {
    "raise": r"loss\.py:\d+: ValueError: no such thing\.$",
    "nan": r"loss is nan at step 3; this step updated no weight\. The rows of this step: .*/train\.jsonl:\d+.*"
    r"checkpoints/step-2\.",
    "kill": r"rank {bad}: killed by SIGKILL",
    "hang": r"rank {good}: another process did not answer within launch\.timeout_minutes",
}
pytestmark = pytest.mark.slow


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "loss.py").write_text(LOSS, encoding="utf-8")
    every = [*SHORT, "train.loss=loss.py:loss", "train.per_device_train_batch_size=4", "launch.num_processes=2"]
    command = [sys.executable, "-m", "gemma_tune", "recipe=lora_sft", *every, "output_dir=out", *words]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def processes_of(session: int) -> list[str]:
    """The processes of a session that are left."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "-s", str(session)], capture_output=True, text=True, check=False)
    return listed.stdout.split("\n")[:-1]


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "result.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("bad", ["0", "1"])
@pytest.mark.parametrize("fault", SAID)
def test_all_end_with_one_message(fault: str, bad: str, tmp_path: Path) -> None:
    """Within the time limit; result.json has the reason; what is left is whole, and the same command goes on."""
    begun = time.monotonic()
    run = start(tmp_path, "launch.timeout_minutes=0.25", FAULT=fault, BAD_RANK=bad)
    _, stderr = run.communicate(timeout=300)
    assert run.returncode == (2 if fault == "raise" else 1), stderr
    assert time.monotonic() - begun < 200
    messages = [line for line in stderr.splitlines() if line.startswith("gemma_tune: ")]
    wanted = SAID[fault].format(bad=bad, good=1 - int(bad))
    assert len(messages) == 1 and re.search(wanted, messages[0]), stderr
    assert "Traceback" not in stderr and processes_of(run.pid) == []
    left = result(tmp_path)
    assert left["status"] == "failed" and re.search(re.sub(r"^rank \d: ", "", wanted), left["reason"])
    whole = checkpoints(tmp_path / "out" / "checkpoints")
    assert [p.name for p in whole] == ["step-1", "step-2"] and not any(map(damage, whole))
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.endswith((".partial", ".part"))]
    again = start(tmp_path)
    _, stderr = again.communicate(timeout=300)
    assert again.returncode == 0 and result(tmp_path)["status"] == "finished", stderr


@pytest.mark.parametrize("to", ["all", "parent"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stop_leaves_a_checkpoint_to_go_on_from(name: str, to: str, tmp_path: Path) -> None:
    """Resumed, the weights are equal to the bit."""
    whole = start(tmp_path, "output_dir=whole", "train.save_steps=5")
    assert whole.wait(300) == 0
    run = start(tmp_path, "train.save_steps=5", SLOW="2")
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text("utf-8").count("\n") >= 2):
        assert run.poll() is None
        time.sleep(0.05)
    number = getattr(signal, name)
    os.killpg(run.pid, number) if to == "all" else run.send_signal(number)
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == (130 if name == "SIGINT" else 143), stderr
    assert result(tmp_path)["status"] == "interrupted" and processes_of(run.pid) == []
    assert len([line for line in stderr.splitlines() if line.startswith("gemma_tune: ")]) == 1, stderr
    (left,) = checkpoints(tmp_path / "out" / "checkpoints")
    assert damage(left) is None and left.name in ("step-2", "step-3", "step-4")
    again = start(tmp_path, "train.save_steps=5")
    assert again.wait(300) == 0
    expected, found = (weights(tmp_path / name / "checkpoints" / "step-5") for name in ("whole", "out"))
    assert all(value.equal(found[key]) for key, value in expected.items())


EVALUATOR = """
import os, time

def mine(engine, inputs):
    rows = inputs.held_out.rendered
    first = engine.losses(rows, "first")
    if os.environ.get("RANK") == "1":
        if os.environ["FAULT"] == "hang":
            time.sleep(10_000)
        raise ValueError("no such thing")
    return {"mine": sum(engine.losses(rows, "second")) / len(first)}
"""
MEASURED = ("eval.evaluators=[mine.py:mine,held_out_loss]", "eval.before=false")


def test_an_evaluator_that_fails_on_one(tmp_path: Path) -> None:
    """It has failed on all; the next one's figures are right, and the run is finished, with status 1."""
    (tmp_path / "mine.py").write_text(EVALUATOR, encoding="utf-8")
    run = start(tmp_path, *MEASURED, FAULT="raise")
    _, stderr = run.communicate(timeout=300)
    assert run.returncode == 1 and "Traceback" not in stderr, stderr
    assert len([line for line in stderr.splitlines() if line.startswith("gemma_tune: ")]) == 1
    failures = result(tmp_path)["failures"]
    (where, reason), *others = failures.items()
    assert where.endswith("mine.py:mine") and "no such thing" in reason and not others
    figures = json.loads((tmp_path / "out" / "eval" / "after.json").read_text("utf-8"))["figures"]
    alone = start(tmp_path, "eval.evaluators=[held_out_loss]", "eval.before=false", "output_dir=alone")
    assert alone.wait(300) == 0
    wanted = json.loads((tmp_path / "alone" / "eval" / "after.json").read_text("utf-8"))["figures"]
    assert figures == wanted


def test_an_evaluator_that_hangs_on_one(tmp_path: Path) -> None:
    """The others wait for launch.timeout_minutes, and no longer."""
    (tmp_path / "mine.py").write_text(EVALUATOR, encoding="utf-8")
    run = start(tmp_path, *MEASURED, "launch.timeout_minutes=0.25", FAULT="hang")
    _, stderr = run.communicate(timeout=300)
    assert run.returncode == 1 and processes_of(run.pid) == [], stderr
    assert "did not answer within launch.timeout_minutes" in stderr
    assert "did not answer" in result(tmp_path)["reason"]


def test_the_best_step_is_loaded_on_all(tmp_path: Path) -> None:
    """The best step is not the last one: a rate that is far too high makes the loss grow."""
    words = ("train.eval_steps=1", "train.metric_for_best_model=held_out_loss", "eval.during_training=[held_out_loss]")
    run = start(tmp_path, *words, "train.learning_rate=30", "eval.evaluators=[held_out_loss]", "train.save_steps=null")
    _, stderr = run.communicate(timeout=300)
    assert run.returncode == 0, stderr
    best = result(tmp_path)["metrics"]["best"]
    after = json.loads((tmp_path / "out" / "eval" / "after.json").read_text("utf-8"))["figures"]["held_out_loss"]
    assert best["step"] < 5 and after == pytest.approx(best["value"], rel=1e-5)
