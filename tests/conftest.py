"""What every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # libraries read it when they are imported

from gemma_tune.run.paths import ASSETS


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The embedded model's folder."""
    return ASSETS / "tiny"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
