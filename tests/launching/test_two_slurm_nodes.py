"""`launch=slurm` on a real Slurm of two nodes on this machine (make test-slurm)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import cluster, wait_for_job, why_not

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[dict[str, str]]:
    """The environment of a cluster."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="gt", dir="/tmp") as name, cluster(Path(name)) as env:
        yield {**env, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def submit(folder: Path, steps: int, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [
        "recipe=lora_sft", "model=tiny", "tracker=none", f"output_dir={folder}", f"train.max_steps={steps}",
        "eval=none", "export=none", "launch=slurm", "launch.num_nodes=2", "launch.slurm.gpus_per_node=0",
        "launch.slurm.setup=[export MASTER_ADDR=localhost]",  # the nodes' names are no names of the network
    ]  # fmt: skip
    command = [sys.executable, "-m", "gemma_tune", *words]
    done = subprocess.run(command, cwd=folder.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def job_of(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.partition("Submitted as job ")[2].partition(":")[0]


def steps_of(folder: Path) -> list[int]:
    file = folder / "metrics.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return sorted({row["step"] for row in map(json.loads, lines) if "loss" in row})


def status_of(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text("utf-8"))["status"])


def test_five_steps_on_two_nodes(two_nodes: dict[str, str], tmp_path: Path) -> None:
    """A process on each; afterwards the same command finds the run done."""
    folder = tmp_path / "a run"
    job = job_of(submit(folder, 5, two_nodes))
    ended = wait_for_job(job, two_nodes)
    said = (folder / f"slurm-{job}.out").read_text("utf-8")
    assert ended["JobState"] == "COMPLETED", said
    assert "Machine 0 of 2" in said and "Machine 1 of 2" in said
    assert status_of(folder) == "finished" and steps_of(folder) == [1, 2, 3, 4, 5]
    assert "This run is done already" in submit(folder, 5, two_nodes).stdout


def test_the_end_of_its_time_is_announced_and_the_same_command_goes_on(
    two_nodes: dict[str, str], tmp_path: Path
) -> None:
    """By the signal that the file asks for: a checkpoint of both nodes' processes, and the job's second part."""
    folder = tmp_path / "run"
    job = job_of(submit(folder, 30, two_nodes))
    deadline = time.monotonic() + 200
    while len(steps_of(folder)) < 2:
        assert time.monotonic() < deadline, (folder / f"slurm-{job}.out").read_text("utf-8")
        time.sleep(0.2)
    subprocess.run(["scancel", "--signal=USR1", job], env=two_nodes, check=True)
    ended = wait_for_job(job, two_nodes)
    said = (folder / f"slurm-{job}.out").read_text("utf-8")
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] == "143:0", (ended, said)
    assert "has checkpoints: the same command goes on" in said and "once more ends it now" in said
    assert status_of(folder) == "interrupted" and len(list((folder / "checkpoints").iterdir())) == 1
    again = job_of(submit(folder, 30, two_nodes))
    ended = wait_for_job(again, two_nodes)
    assert ended["JobState"] == "COMPLETED", (folder / f"slurm-{again}.out").read_text("utf-8")
    assert status_of(folder) == "finished" and steps_of(folder) == list(range(1, 31))
