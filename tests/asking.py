"""Starts the command line as a user does, each time in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# As `python -m gemma_tune` does it, but it looks at the end whether torch was imported on the way.
CHILD = """
import runpy, sys
try:
    runpy.run_module("gemma_tune", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert "torch" not in sys.modules, "torch was imported"
    raise
"""
ROW = '{"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2."}]}\n'
# The example of the design, which the messages show, too.
MY_RUN = """\
# @package _global_
defaults: [qlora_sft, {override /adapter: dora}, _self_]
train: {learning_rate: 1e-4}
"""
START = "# @package _global_\ndefaults: [qlora_sft, _self_]\n"


def write(name: str, text: str) -> Path:
    """Writes a file below the current folder."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def ask(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in the current folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, env=env, timeout=120)


def refused(*words: str) -> str:
    """The message that answers a mistake, after the checks that hold for every mistake."""
    before = sorted(Path.cwd().rglob("*"))
    done = ask(*words)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("gemma_tune: ")  # and no line of Hydra's before it
    assert sorted(Path.cwd().rglob("*")) == before, "something was left in the current folder"
    return done.stderr
