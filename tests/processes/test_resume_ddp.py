"""A run of two processes that is killed goes on: on two to the bit, on another number with the same batch to 1e-6."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from runs import steps, weights
from test_faults import processes_of, start

from gemma_tune.run.checkpoints import checkpoints, damage

ADAMW = ("train.optim=adamw_torch", "train.learning_rate=1e-3", "train.max_steps=8", "train.save_total_limit=2")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder, *ADAMW).wait(300) == 0
    return folder / "out"


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random(seed: int, whole: Path, tmp_path: Path) -> None:
    """All processes at once, or one of the two: equal to the bit, and no half checkpoint in between."""
    chance = random.Random(seed)
    for _ in range(2):
        run = start(tmp_path, *ADAMW, SLOW="0.3")
        log, many = tmp_path / "out" / "metrics.jsonl", chance.randint(1, 5)
        before = log.read_text("utf-8").count("\n") if log.is_file() else 0
        while run.poll() is None and not (log.is_file() and log.read_text("utf-8").count("\n") >= before + many):
            time.sleep(0.02)
        time.sleep(chance.random() * 1.5)
        if run.poll() is None:
            workers = [int(line.split()[0]) for line in processes_of(run.pid) if "cli.worker" in line]
            if chance.random() < 0.5 or not workers:
                os.killpg(run.pid, signal.SIGKILL)
            else:
                os.kill(chance.choice(workers), signal.SIGKILL)
        run.communicate(timeout=120)
        assert not any(map(damage, checkpoints(tmp_path / "out" / "checkpoints")))
    assert start(tmp_path, *ADAMW).wait(300) == 0
    assert [line["loss"] for line in steps(tmp_path / "out")] == [line["loss"] for line in steps(whole)]
    expected, found = (weights(folder / "checkpoints" / "step-8") for folder in (whole, tmp_path / "out"))
    assert all(value.equal(found[key]) for key, value in expected.items())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("launch.num_processes=2",), ("launch.num_processes=1", "train.gradient_accumulation_steps=2")),
        (("launch.num_processes=1", "train.per_device_train_batch_size=8"), ("launch.num_processes=2",)),
        (("launch.num_processes=2",), ("launch.num_processes=4", "train.per_device_train_batch_size=2")),
    ],
)
def test_another_number_of_processes(
    first: tuple[str, ...], second: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    """The batch of a step is the same, so it is the same run; what differs is said."""
    sgd = ("train.optim=sgd", "train.learning_rate=1e-2", "train.max_steps=6")
    assert start(tmp_path, *sgd, "output_dir=whole").wait(300) == 0
    run = start(tmp_path, *sgd, *first, SLOW="1")
    log = tmp_path / "out" / "metrics.jsonl"
    while not (log.is_file() and log.read_text("utf-8").count("\n") >= 3):
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait(120) == 143
    again = start(tmp_path, *sgd, *second)
    out, stderr = again.communicate(timeout=300)
    assert again.returncode == 0, stderr
    assert "dropout, where there is some, draws other numbers" in out
    losses = [line["loss"] for line in steps(tmp_path / "out")]
    assert losses == pytest.approx([line["loss"] for line in steps(tmp_path / "whole")], rel=1e-6, abs=1e-6)
