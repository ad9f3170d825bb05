"""What the progress bar says of a training, in a terminal and in a log."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers.trainer_callback import TrainerState

from gemma_tune.train.callbacks import ProgressBar
from gemma_tune.train.checkpointing import _COUNTED, CheckpointedTrainer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def train(trainer: CheckpointedTrainer | None = None, first: int = 0, **more: Any) -> None:
    """Ten steps of a second and of 250 tokens each, logged every second step."""
    counted = trainer.counted_tokens() if trainer else 0
    bar = ProgressBar(trainer.counted_tokens if trainer else lambda: 0)
    state = SimpleNamespace(max_steps=first + 10, global_step=first)
    control = SimpleNamespace(should_log=False)
    bar.on_train_begin(None, state, control)
    for step in range(1, 11):
        clock[0] += 1.0
        state.global_step = first + step
        optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
        bar.on_pre_optimizer_step(None, state, control, optimizer=optimizer)
        control.should_log = step % 2 == 0
        bar.on_step_end(None, state, control)
        if step % 2 == 0:
            logs = {"loss": 1.0 / step, "num_tokens": float(counted + 250 * step)} | more
            bar.on_log(None, state, control, logs={k: v for k, v in logs.items() if v is not None})
    bar.on_train_end(None, state, control)


clock = [0.0]


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_tune.train.callbacks.time", SimpleNamespace(monotonic=lambda: clock[0]))


class Trainer(CheckpointedTrainer):
    """Only what TRL and Transformers count, and the model that a checkpoint is loaded into."""

    def __init__(self, of_trl: int, of_state: int) -> None:
        self._total_train_tokens = of_trl
        self.state = TrainerState(num_input_tokens_seen=of_state)
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.is_fsdp_enabled = False


def resumed(folder: Path, of_trl: int) -> Trainer:
    """A trainer of TRL's own count that goes on from a checkpoint with this count."""
    (folder / _COUNTED).write_text(json.dumps({"tokens": of_trl}), encoding="utf-8")
    save_file({"weight": torch.ones(1, 1)}, folder / "model.safetensors")
    trainer = Trainer(0, 0)
    trainer.model.all_tied_weights_keys = {}
    trainer._load_from_checkpoint(str(folder))
    return trainer


@pytest.mark.parametrize("which", ["new", "TRL's count", "of a state"])
def test_lines_of_a_log(which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resumed run counts its own tokens, wherever the trainer keeps the number that it goes on from."""
    made = {"new": lambda: Trainer(0, 0), "TRL's count": lambda: resumed(tmp_path, 10_000)}
    trainer = made.get(which, lambda: Trainer(0, 10_000))()
    assert trainer.counted_tokens() == (0 if which == "new" else 10_000)
    first = 0 if which == "new" else 40
    train(trainer, first)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"train: {first + 10}/{first + 10} steps, 1.00 steps/s, 250 tokens/s, 00:00 left, loss 0.1000"
    if which == "new":
        assert lines[5].endswith("loss 0.1667") and len(lines) == 10  # of this very step, where it is logged
    assert all(len(line) <= 100 for line in lines)


def test_a_trainer_that_counts_no_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    train(num_tokens=None)
    assert capsys.readouterr().err.splitlines()[-1] == "train: 10/10 steps, 1.00 steps/s, 00:00 left, loss 0.1000"


def test_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train()
    last = terminal.getvalue().rpartition("\r")[2]
    assert "10/10" in last and "250 tokens/s, loss 0.1000" in last
