"""torchrun's agent within this process, so that each worker's exit status is known and stops end whole.

Differences from the command `torchrun`: the first worker that ends doesn't take the others with it at once (they end
by themselves, with a checkpoint where one is due, and are ended only where they don't); and a signal reaches the
workers once, as it came. Imports torch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult as AgentResult
from torch.distributed.elastic.agent.server.api import WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from gemma_tune.launching.place import Place
from gemma_tune.run.stopping import STOPPED

# What the others have after the first one has failed; after one that was asked to end, which all are
_GRACE_SECONDS, _STOP_SECONDS = 60.0, 600.0
_BARRIER_SECONDS = 60.0  # that the agents of all machines wait for one another at the end


class WorkerAgent(LocalElasticAgent):
    """torchrun's agent, which gives the other workers time after the first one has ended.

    Args:
        spec: What to start.
        logs_specs: Where the agent keeps files of its own.
        on_failure: Called with the agent's group, and the rank and the exit status of the first worker that failed.

    Attributes:
        statuses: Exit status by rank, in the order in which they ended; negative: the signal that ended it.
    """

    def __init__(self, spec: WorkerSpec, logs_specs: Any, on_failure: Callable[[WorkerGroup, int, int], None]) -> None:
        super().__init__(
            spec=spec, logs_specs=logs_specs, start_method="spawn", exit_barrier_timeout=int(_BARRIER_SECONDS)
        )
        self.statuses: dict[int, int] = {}
        self._on_failure = on_failure
        self._ends_at = float("inf")

    def pids(self) -> list[int]:
        """The workers that run."""
        running = self._pcontext.pids() if self._pcontext else {}
        return [pid for local_rank, pid in running.items() if self._rank(local_rank) not in self.statuses]

    def end_within(self, seconds: float) -> None:
        """From now on the workers have this long to end by themselves."""
        self._ends_at = min(self._ends_at, time.monotonic() + seconds)

    def _rank(self, local_rank: int) -> int:
        return int(self._worker_group.workers[local_rank].global_rank)

    def _monitor_workers(self, worker_group: WorkerGroup) -> AgentResult:
        """Those that ended are only noted until all have, or the others have had their time."""
        assert self._pcontext is not None
        pids = self._pcontext.pids()
        for rank, pid in sorted((self._rank(local_rank), pid) for local_rank, pid in pids.items()):
            if rank not in self.statuses and (status := _exit_status(pid)) is not None:
                self._note(worker_group, rank, status)
        if len(self.statuses) < len(pids):
            if time.monotonic() < self._ends_at:
                return AgentResult(state=WorkerState.HEALTHY)
            self._stop_workers(worker_group)  # by SIGTERM, and by SIGKILL half a minute later
        super()._monitor_workers(worker_group)  # waits for them, so that none is left as a zombie
        # Whatever their statuses: so the agents of all machines wait for one another, since the first one holds the
        # store, and a cluster may end the whole job when one of them has left
        return AgentResult(
            state=WorkerState.SUCCEEDED, return_values=dict.fromkeys(self._rank(local_rank) for local_rank in pids)
        )

    def _note(self, worker_group: WorkerGroup, rank: int, status: int) -> None:
        first = not any(s not in (0, *STOPPED) for s in self.statuses.values())
        self.statuses[rank] = status
        if status in STOPPED:
            self.end_within(_STOP_SECONDS)
        elif status != 0:
            self.end_within(_GRACE_SECONDS)
            if first:
                self._on_failure(worker_group, rank, status)


def _exit_status(pid: int) -> int | None:
    """The exit status of a child, negative after a signal; None while it runs. It stays to be waited for."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 1  # waited for by somebody else
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def build_agent(
    place: Place, command: list[str], scratch: str, on_failure: Callable[[WorkerGroup, int, int], None]
) -> WorkerAgent:
    """The agent of this machine.

    Args:
        place: Where the processes are.
        command: What each of them runs.
        scratch: A folder for the agent's own files.
        on_failure: See `WorkerAgent`.
    """
    quiet = logging.getLogger("torch.distributed.elastic")
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False  # its page about a failed worker, which has said why itself
    alone = place.nodes == 1
    options = {"is_host": True} if alone else {"rank": place.node_rank}
    parameters = RendezvousParameters(
        backend="c10d" if alone else "static",  # static takes the place of each machine as it is given
        endpoint=f"{place.address}:{place.port}",
        run_id="gemma_tune",
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        local_addr=place.address if alone else None,
        timeout=max(int(place.minutes * 60), 1),
        **options,
    )
    spec = WorkerSpec(
        role="gemma_tune",
        local_world_size=place.processes,
        entrypoint=command[0],
        args=tuple(command[1:]),
        rdzv_handler=get_rendezvous_handler(parameters),
        max_restarts=0,
        monitor_interval=0.1,
        master_addr=None if alone else place.address,
        master_port=None if alone else place.port,
        local_addr=place.address if alone else None,
    )
    return WorkerAgent(spec, DefaultLogsSpecs(log_dir=scratch), on_failure)
