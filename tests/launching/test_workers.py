"""The processes that launch.num_processes starts: their environment, how they end, and what is said once for all.

The workers are `fake_worker.py`; nothing is trained.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SLOW = pytest.mark.slow
HERE = Path(__file__).parent


def hear() -> None:
    """Where tests run in the background Ctrl-C is ignored, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin(folder: Path, *what: str, processes: int = 2, **variables: str) -> subprocess.Popen[str]:
    """Starts fake workers that do `what`."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"TMPDIR": str(folder)} | variables
    command = [sys.executable, str(HERE / "start_fakes.py"), str(folder), str(processes), *what]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=hear
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=90)
    assert "Traceback" not in error and "torch" not in error, error
    return process.returncode, out, error


def run(folder: Path, *what: str, processes: int = 2, **variables: str) -> tuple[int, str, str]:
    return ended(begin(folder, *what, processes=processes, **variables))


def wait_for(when: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not when():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def have_begun(folder: Path, processes: int = 2) -> Callable[[], bool]:
    return lambda: len(list(folder.glob("begun-*"))) == processes


def environment(folder: Path, rank: int) -> dict[str, str]:
    lines = (folder / f"begun-{rank}").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


@SLOW
def test_each_process_knows_its_place(tmp_path: Path) -> None:
    """And its share of the cores, where the user has not set OMP_NUM_THREADS."""
    assert run(tmp_path, "ok") == (0, "all done\n", "")
    share = max(len(os.sched_getaffinity(0)) // 2, 1)
    for rank in (0, 1):
        assert environment(tmp_path, rank) == {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
            "MASTER_ADDR": "localhost", "OMP_NUM_THREADS": str(share),
        }  # fmt: skip
    assert not list(tmp_path.glob("torchelastic*")), "torchrun leaves folders of its logs there"


@pytest.mark.slow
def test_threads_stay_as_the_user_set_them(tmp_path: Path) -> None:
    assert run(tmp_path, "ok", OMP_NUM_THREADS="3")[0] == 0
    assert environment(tmp_path, 1)["OMP_NUM_THREADS"] == "3"


@SLOW
@pytest.mark.slow
def test_the_first_mistake_ends_with_2(tmp_path: Path) -> None:
    """And it doesn't take the other process with it, which ends by itself: torchrun would have ended it at once."""
    assert run(tmp_path, "sleeps=1", "1:mistake") == (2, "", "gemma_tune: rank 1 can't read its file.\n")
    assert (tmp_path / "done-0").is_file() and not (tmp_path / "heard-0").exists()


@pytest.mark.slow
def test_a_failed_process_ends_with_1(tmp_path: Path) -> None:
    message = "gemma_tune: rank 1: the loss is NaN on rank 1.\n"
    assert run(tmp_path, "sleeps=1", "1:fails") == (1, "", message)


@pytest.mark.parametrize(("number", "why"), [(9, "killed by SIGKILL; mostly the machine was out of memory")])
@pytest.mark.slow
def test_a_killed_process_is_named_with_its_signal(tmp_path: Path, number: int, why: str) -> None:
    code, out, error = run(tmp_path, "sleeps=0.5", f"1:killed={number}")
    assert (code, out) == (1, "") and error.startswith(f"gemma_tune: rank 1: {why}"), error


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=SLOW),
        pytest.param(signal.SIGUSR1, 143, marks=SLOW),
    ],
)
@pytest.mark.slow
def test_a_signal_reaches_each_process_once_and_they_end_whole(tmp_path: Path, number: int, code: int) -> None:
    """Rank 1 has ended a second before rank 0 has saved: torchrun would have sent it SIGTERM meanwhile."""
    process = begin(tmp_path, "waits=1")
    wait_for(have_begun(tmp_path))
    process.send_signal(number)
    assert ended(process) == (code, "", "\ngemma_tune: interrupted. Said by 0\n")
    for rank in (0, 1):
        assert (tmp_path / f"heard-{rank}").read_text() == f"{signal.Signals(number).name}\n"
        assert (tmp_path / f"saved-{rank}").is_file()


@pytest.mark.slow
def test_a_second_signal_goes_on_to_them_too(tmp_path: Path) -> None:
    process = begin(tmp_path, "sleeps=3", processes=1)
    wait_for(have_begun(tmp_path, 1))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert ended(process)[0] == 0  # the fake one only notes them
    assert (tmp_path / "heard-0").read_text() == "SIGINT\n" * 2


@pytest.mark.slow
def test_nothing_waits_for_a_machine_that_never_comes(tmp_path: Path) -> None:
    """Ctrl-C is heard while the first machine waits for the others."""
    variables = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29871"}
    process = begin(tmp_path, "ok", **variables)
    assert process.stderr
    assert process.stderr.readline().startswith("Machine 0 of 2: waits for the others at localhost:29871")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", "\ngemma_tune: interrupted.\n")
    assert not list(tmp_path.glob("begun-*"))


@pytest.mark.slow
def test_two_machines(tmp_path: Path) -> None:
    """On localhost: ranks are given in the order of NODE_RANK, and a failure on one is said on both."""
    variables = {"NNODES": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29872"}
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    both = [
        begin(folder, "sleeps=2", "1:mistake", processes=1, NODE_RANK=str(rank), **variables)
        for rank, folder in enumerate(folders)
    ]
    (code0, _, _), (code1, _, error1) = [ended(process) for process in both]
    assert environment(folders[1], 1)["GROUP_RANK"] == "1" and environment(folders[1], 1)["LOCAL_RANK"] == "0"
    assert code1 == 2 and error1.endswith("gemma_tune: rank 1 can't read its file.\n")
    assert code0 == 0, "the fake one ends well; a real one fails with what rank 1 said"
    # the fake one ends well; a real one fails with what rank 1 said


@pytest.mark.slow
def test_a_hanging_process_is_ended_after_the_second_signal(tmp_path: Path) -> None:
    """It would sleep for ten minutes, and hears no signal as one that waits in compiled code."""
    process = begin(tmp_path, "sleeps=600")
    wait_for(have_begun(tmp_path))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert ended(process) == (130, "", "\ngemma_tune: interrupted.\n")
