"""Whole commands with launch.num_processes and a recipe that trains nothing: real workers, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemma_tune import run
from gemma_tune.cli.main import main
from gemma_tune.errors import RunError, UserError

RECIPE = '''\
"""Says who it is, and does what `train.run_name` says."""
import os, pathlib, time
from gemma_tune.errors import RunError, UserError

def run(cfg, folder):
    rank = int(os.environ["RANK"])
    pathlib.Path(f"rank-{rank}").write_text(f"{cfg.launch.num_processes} {os.getpid()}")
    with folder.recording():
        while len(list(pathlib.Path().glob("rank-*"))) < 2:
            time.sleep(0.05)
        what = {WHAT}
        if what == "mistake":
            raise UserError("row 3 has no answer.")
        if what == "fails" and rank == 1:
            raise RunError("no number")
        if what == "crash" and rank == 1:
            {}["key"]
        if what == "killed" and rank == 0:
            os.kill(os.getpid(), 9)
        if what == "hangs":
            time.sleep(300)
        folder.result.headline = {"name": "processes", "before": None, "after": 2.0}
        folder.result.failures = {"after: test": "no engine"} if what == "unmeasured" else {}
    return folder.result

def read(cfg, setup):
    return None
'''
SLOW = pytestmark = pytest.mark.slow  # each process imports torch
NAMES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
WORDS = ["model=tiny", "tracker=none", "launch.num_processes=2", "output_dir=out"]


@pytest.fixture(autouse=True)
def alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (folder / "mine.yaml").write_text("# @package _global_\nmethod: sft\n", encoding="utf-8")


def recipe(what: str) -> None:
    Path("mine.py").write_text(RECIPE.replace("{WHAT}", repr(what)), encoding="utf-8")


def status() -> str:
    return str(json.loads(Path("out/result.json").read_text("utf-8"))["status"])


@SLOW
def test_a_run_gives_back_what_is_stored(capsys: pytest.CaptureFixture[str]) -> None:
    """From Python as from the command line, which then says that it is done already."""
    recipe("ends well")
    result = run("mine.py", WORDS)
    assert result.status == "finished" and result.headline["after"] == 2.0 and result.folder == Path("out")
    assert [Path(f"rank-{rank}").read_text().split()[0] for rank in (0, 1)] == ["2", "2"]
    assert main(["recipe=mine.py", *WORDS]) == 0
    assert "This run is done already" in capsys.readouterr().out


@SLOW
def test_a_killed_process_is_said_once_and_the_folder_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    recipe("killed")
    with pytest.raises(RunError, match=r"^rank 0: killed by SIGKILL; mostly the machine was out of memory"):
        run("mine.py", WORDS)
    assert status() == "failed" and not Path("out/.lock").exists()
    assert "Traceback" not in capfd.readouterr().err


@SLOW
def test_mistakes_and_failures(capfd: pytest.CaptureFixture[str]) -> None:
    """With the statuses of a single process, and one message."""
    recipe("mistake")
    assert main(["recipe=mine.py", *WORDS]) == 2
    assert capfd.readouterr().err == "gemma_tune: row 3 has no answer.\n"
    assert not Path("out").exists()
    recipe("fails")
    with pytest.raises(RunError, match="rank 1: no number"):
        run("mine.py", WORDS)
    with pytest.raises(UserError, match=r"holds a run with another configuration"):
        run("mine.py", [*WORDS, "seed=5"])


@SLOW
def test_a_crash_shows_where_and_ends_with_1(capfd: pytest.CaptureFixture[str]) -> None:
    recipe("crash")
    assert main(["recipe=mine.py", *WORDS]) == 1
    assert "mine.py" in (said := capfd.readouterr().err) and "KeyError" in said


@SLOW
def test_what_was_not_measured_ends_with_1(capfd: pytest.CaptureFixture[str]) -> None:
    recipe("unmeasured")
    assert main(["recipe=mine.py", *WORDS]) == 1
    assert capfd.readouterr().err == "gemma_tune: out: after: test failed: no engine\n"
    assert status() == "finished"


@SLOW
def test_processes_end_with_the_one_that_started_them(folder: Path) -> None:
    """Killed with no chance to tell them."""
    recipe("hangs")
    command = [sys.executable, "-m", "gemma_tune", "recipe=mine.py", *WORDS]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(found := [p for p in folder.glob("rank-*") if len(p.read_text().split()) == 2]) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    pids = [int(p.read_text().split()[1]) for p in found]
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(_lives, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert status() == "interrupted"


def _lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@SLOW
def test_a_sweep_starts_each_job_so(capfd: pytest.CaptureFixture[str]) -> None:
    recipe("ends well")
    words = [word for word in WORDS if not word.startswith("output_dir")]
    assert main(["-m", "recipe=mine.py", *words, "seed=1,2"]) == 0
    found = sorted(json.loads(p.read_text("utf-8"))["status"] for p in Path("runs").glob("mine-*/result.json"))
    assert found == ["finished", "finished"]
    assert os.environ["OMP_NUM_THREADS"] == "1"
