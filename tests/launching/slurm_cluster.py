"""A real Slurm of two nodes on this machine, for tests: its own configuration, keys, ports and folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={at}/munge.socket
StateSaveLocation={at}/state
SlurmctldPidFile={at}/slurmctld.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdPidFile={at}/slurmd-%n.pid
SlurmdLogFile={at}/slurmd-%n.log
SlurmdSpoolDir={at}/spool-%n
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
KillWait=30
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=1 State=UNKNOWN
"""


def why_not() -> str | None:
    """Why there can be no such cluster on this machine."""
    if missing := [name for name in PROGRAMS if program(name) is None]:
        return f"without {', '.join(missing)} (make test-slurm installs slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "Slurm's daemons with a cluster of their own are started by root"


def program(name: str) -> str | None:
    """Debian has the daemons in /usr/sbin, which is on the path of root alone."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def cluster(at: Path) -> Iterator[dict[str, str]]:
    """Starts it, and gives the environment in which its commands are to be used.

    Args:
        at: A folder for all of its files, which must have a short path: sockets are in it.
    """
    (at / "state").mkdir()
    (at / "munge.key").write_bytes(os.urandom(1024))
    (at / "munge.key").chmod(0o600)
    port, port1, port2 = _ports(3)
    host = socket.gethostname()
    (at / "slurm.conf").write_text(_CONFIG.format(at=at, host=host, port=port, port1=port1, port2=port2))
    env = {**os.environ, "SLURM_CONF": str(at / "slurm.conf")}
    munge = [f"--{name}-file={at / f'munge.{name}'}" for name in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--force", "--foreground", f"--socket={at / 'munge.socket'}", *munge],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, *arguments in commands:
            started.append(
                subprocess.Popen(
                    [str(program(name)), *arguments], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
            time.sleep(0.5)
        deadline = time.monotonic() + 60
        while _idle(env) != "2":
            assert time.monotonic() < deadline, _idle(env)
            time.sleep(0.5)
        yield env
    finally:
        subprocess.run(["scancel", "--full", "--state=RUNNING"], env=env, capture_output=True)
        for daemon in reversed(started):
            daemon.terminate()
        for daemon in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()


def _idle(env: dict[str, str]) -> str:
    found = subprocess.run(["sinfo", "-h", "-t", "idle", "-o", "%D"], env=env, capture_output=True, text=True)
    return found.stdout.strip()


def wait_for_job(job: str, env: dict[str, str], seconds: float = 300) -> dict[str, str]:
    """What Slurm says of a job after its end."""
    deadline = time.monotonic() + seconds
    while True:
        said = subprocess.run(["scontrol", "--oneliner", "show", "job", job], env=env, capture_output=True, text=True)
        found = dict(word.split("=", 1) for word in said.stdout.split() if "=" in word)
        if found.get("JobState") not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", None):
            return found
        assert time.monotonic() < deadline, (said.stdout, said.stderr)
        time.sleep(0.5)
