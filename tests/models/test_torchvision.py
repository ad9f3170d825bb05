"""A torchvision that can't be imported is said by name, before Transformers fails on it; each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gemma_tune.doctor import trials
from gemma_tune.doctor.findings import State


def test_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch beside it is an empty one, so that nothing but the check itself can have found the fault."""
    for name, source in (("torch", ""), ("torchvision", "raise RuntimeError('no operator nms')")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    done = subprocess.run(
        [sys.executable, "-m", "gemma_tune", "recipe=models"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = "torchvision is installed and can't be imported (no operator nms)"
    assert said in done.stderr and "Install the torchvision that belongs to torch 2." in done.stderr
    found = trials.of_trainers(trials.run_trials(["trainers"], 60)["trainers"])
    assert (found.name, found.state, found.said) == ("torchvision", State.BROKEN, said)
    assert "or uninstall torchvision" in found.fix
