"""What the progress bar says of a training, in a terminal and in a log."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from gemma_tune.train.callbacks import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def train(first: int = 0, counted: int = 0, **more: Any) -> None:
    """Ten steps of a second and of 250 tokens each, logged every second step."""
    bar = ProgressBar()
    state = SimpleNamespace(max_steps=first + 10, global_step=first, num_input_tokens_seen=counted)
    control = SimpleNamespace(should_log=False)
    bar.on_train_begin(None, state, control)
    for step in range(1, 11):
        clock[0] += 1.0
        state.global_step = first + step
        optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
        bar.on_pre_optimizer_step(None, state, control, optimizer=optimizer)
        bar.on_step_end(None, state, control)
        if step % 2 == 0:
            logs = {"loss": 1.0 / step, "num_tokens": float(counted + 250 * step)} | more
            bar.on_log(None, state, control, logs={k: v for k, v in logs.items() if v is not None})
    bar.on_train_end(None, state, control)


clock = [0.0]


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_tune.train.callbacks.time", SimpleNamespace(monotonic=lambda: clock[0]))


@pytest.mark.parametrize(("first", "counted"), [(0, 0), (40, 0), (40, 10_000)])
def test_lines_of_a_log(first: int, counted: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A resumed run counts its own tokens, whether or not the trainer goes on counting."""
    train(first, counted)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"train: {first + 10}/{first + 10} steps, 1.00 steps/s, 250 tokens/s, 00:00 left, loss 0.1250"
    assert all(len(line) <= 100 for line in lines)


def test_a_trainer_that_counts_no_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    train(num_tokens=None)
    assert capsys.readouterr().err.splitlines()[-1] == "train: 10/10 steps, 1.00 steps/s, 00:00 left, loss 0.1250"


def test_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train()
    last = terminal.getvalue().rpartition("\r")[2]
    assert "10/10" in last and "250 tokens/s, loss 0.1000" in last
