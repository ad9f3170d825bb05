"""`launch=local`: the processes of this machine, started under torchrun's agent. torch is imported when they start."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_tune.child import python_module
from gemma_tune.config import Config
from gemma_tune.cores import allowed_cores
from gemma_tune.errors import RunError, UserError, first_line
from gemma_tune.launching.handover import read_message, write_config
from gemma_tune.launching.place import Place, refuse_place
from gemma_tune.processes import FAILED, connect, first_failure
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.identity import folder_of
from gemma_tune.run.lock import locked
from gemma_tune.run.manifest import write_json
from gemma_tune.run.place import delete_leftovers
from gemma_tune.run.result import RunResult
from gemma_tune.run.stopping import STOPPED, Stopped, Stops, listening
from gemma_tune.untrusted import read_object

WORKER = "gemma_tune.cli.worker"
_PATIENCE_SECONDS = 15.0  # of whoever asks a second time


def run_here(cfg: Config) -> RunResult:
    """Runs a recipe in several processes of this machine, perhaps with those of other machines.

    Args:
        cfg: The checked configuration.

    Raises:
        UserError: What can't be started, or the mistake that a process has found.
        RunError: A process failed, or was killed.
        Stopped: The run was asked to end.
    """
    place = refuse_place(cfg)
    with tempfile.TemporaryDirectory(prefix="gemma_tune-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        write_config(scratch, cfg)
        workers = Workers(place, python_module(WORKER, str(scratch)), scratch)
        with threads_of_each(place.processes):
            workers.run()
        try:
            workers.raise_failure(scratch)
        except (RunError, Stopped) as error:
            _note_end(folder_of(cfg), "failed" if isinstance(error, RunError) else "interrupted", str(error))
            raise
    return RunFolder.open(cfg).stored_result() if place.node_rank == 0 else RunResult(cfg.recipe, folder=folder_of(cfg))


@contextlib.contextmanager
def threads_of_each(processes: int) -> Iterator[None]:
    """Within it, each of several processes that are started computes with its share of the cores."""
    if processes == 1 or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(allowed_cores() // processes, 1))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


class Workers(Stops):
    """The processes of this machine while they run; a signal to this process goes on to them.

    Args:
        place: Where they are.
        command: What each of them runs.
        scratch: A folder for the agent's own files.
    """

    def __init__(self, place: Place, command: list[str], scratch: Path) -> None:
        super().__init__()
        from gemma_tune.launching.agent import build_agent

        self._place = place
        self._error: BaseException | None = None
        self._first: tuple[int, str] | None = None  # rank and message of the first failure on all machines
        try:
            self._agent = build_agent(place, command, str(scratch), self._on_failure)
        except Exception as error:
            raise self._unmet(error) from error

    def run(self) -> None:
        """Starts them, and waits until all have ended.

        Raises:
            UserError: The machines didn't meet.
            Stopped: Asked to end before the processes were started.
        """
        if self._place.nodes > 1:
            seconds = f"{self._place.minutes:g} minutes at most"
            print(
                f"Machine {self._place.node_rank} of {self._place.nodes}: waits for the others at "
                f"{self._place.address}:{self._place.port} ({seconds}).",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        # In a thread of its own: the agent waits for other machines where no signal reaches Python
        thread = threading.Thread(target=self._run_agent, daemon=True)
        with listening(self):
            thread.start()
            while thread.is_alive():
                thread.join(0.1)
        if self._error is not None:
            raise self._unmet(self._error) from self._error

    def on_signal(self, number: int, _: Any = None) -> None:
        """Passes a signal on to the processes.

        Raises:
            Stopped: There are none yet.
        """
        code = STOPPED[number != signal.SIGINT]
        if self.asked is not None:
            self._agent.end_within(_PATIENCE_SECONDS)
        self.asked = code
        pids = self._agent.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if not pids and not self._agent.statuses:
            self._agent.end_within(0)
            raise Stopped(code)

    def raise_failure(self, scratch: Path) -> None:
        """Raises what the first process that failed has left, where one has.

        Args:
            scratch: The folder with the messages.
        """
        ended = self._agent.statuses
        failed = [rank for rank, status in ended.items() if status not in (0, *STOPPED)]
        stopped = [status for status in ended.values() if status in STOPPED]
        by_force = len(ended) < self._place.processes  # in vain asked to end, as all were
        if self.asked is not None and stopped and not any(status < 0 for status in ended.values()):
            failed = []  # at the second signal one ends before the other, whose connection breaks
        if not failed and (stopped or by_force):
            said = next(filter(None, (read_message(scratch, rank) for rank in sorted(ended))), "")
            raise Stopped((*stopped, self.asked or 0)[0], said.removeprefix("interrupted.").strip())
        if not failed:
            return
        rank, message = self._first or (failed[0], "")
        here = rank in ended
        status = ended[rank if here else failed[0]]
        message = read_message(scratch, rank) or message
        if status == 2:
            raise UserError(message if here else f"rank {rank}, on another machine: {message}")
        if status == 128 + signal.SIGPIPE:
            raise BrokenPipeError
        said = message or f"it ended with status {status}."
        raise RunError(f"rank {rank}{'' if here else ', on another machine'}: {said}")

    def _run_agent(self) -> None:
        try:
            self._agent.run()
        except BaseException as error:  # said by the thread that waits
            self._error = error

    def _on_failure(self, group: Any, rank: int, status: int) -> None:
        """Tells the other processes why a killed one has ended, and notes which one failed first."""
        self._first = (rank, killed_by(-status)) if status < 0 else None
        with contextlib.suppress(RuntimeError):  # the first machine is gone
            store = connect(group.master_addr, group.master_port, seconds=5)
            if self._first:
                store.compare_set(FAILED, "", f"{rank} {self._first[1]}")
            self._first = first_failure(store) or self._first

    def _unmet(self, error: BaseException) -> UserError:
        where = f"{self._place.address}:{self._place.port}"
        if self._place.nodes == 1:
            return UserError(f"launch: the processes can't be started at {where} ({first_line(error)}).")
        return UserError(
            f"launch: the {self._place.nodes} machines didn't meet at {where} ({first_line(error)}); give the same "
            "command on each, with NODE_RANK 0, 1, … and the same MASTER_ADDR and MASTER_PORT."
        )


def killed_by(number: int) -> str:
    """What a signal means for a process that it has ended."""
    name = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
    why = {
        "SIGKILL": "; mostly the machine was out of memory (see `dmesg`), or somebody ended it",
        "SIGSEGV": ", a crash in compiled code of a library",
        "SIGBUS": ", a crash in compiled code; in a container mostly too little shared memory (--shm-size)",
        "SIGABRT": ", an abort in compiled code of a library",
    }
    return f"killed by {name}{why.get(name, '')}."


def _note_end(folder: Path, status: str, reason: str) -> None:
    """Leaves a result that says how the run ended, where the process that writes it was killed."""
    with contextlib.suppress(OSError, ValueError, UserError), locked(folder):
        tree = read_object(folder / "result.json")
        if tree.get("status") == "running":
            delete_leftovers(folder)
            write_json(folder / "result.json", {**tree, "status": status, "reason": reason})
