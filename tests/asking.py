"""Starts the command line as a user does, each time in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

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


# A process that has composed once; each command runs in a copy of it, which spares the imports and what is read once.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["composed_once"])


def _command_line(words: tuple[str, ...], folder: str, env: dict[str, str], out: str, err: str) -> None:
    """As `python -m gemma_tune` does it, but it looks at the end whether torch was imported on the way."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for name, number, file in (("stdout", 1, out), ("stderr", 2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
    sys.argv = ["gemma_tune", *words]
    try:
        runpy.run_module("gemma_tune", run_name="__main__", alter_sys=True)
    except SystemExit:
        assert "torch" not in sys.modules, "torch was imported"
        raise
    finally:
        sys.stdout.flush()


def ask(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in the current folder, in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        child = _SERVER.Process(target=_command_line, args=(words, str(Path.cwd()), env, str(out), str(err)))
        child.start()
        child.join(120)
        assert child.exitcode is not None, "no answer in two minutes"
        texts = (out.read_text("utf-8"), err.read_text("utf-8"))
        return subprocess.CompletedProcess(words, child.exitcode, *texts)


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
