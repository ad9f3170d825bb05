"""Hostile inputs of every kind: refused in seconds and with little memory, by one message, and nothing is executed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cases import CASES

# What is hostile in them is never looked at, so they do no harm: tokenizers of our classes are built anew.
HARMLESS = ("tokenizer: forty doublings", "tokenizer: remote code", "tokenizer: ids of 2^60")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All cases, measured in one child; its output and its errors are looked at, too."""
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, str(Path(__file__).with_name("cases.py")), str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "trust_remote_code" not in done.stderr
    return {found["case"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_a_hostile_file(measured: dict[str, dict[str, Any]], name: str) -> None:
    found = measured[name]
    assert found["ended"] == "refused" or (found["ended"] == "accepted" and name in HARMLESS), found
    assert len(found["said"]) < 30 * 2100 and max(map(len, found["said"].split("\n"))) <= 2100
    # 5 seconds on a machine of its own; tests share theirs
    assert found["seconds"] < 20 and found["mb"] < 500, found
