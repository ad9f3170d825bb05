"""Commands run side by side, but never at once: each has the machine for a turn of a second, then the next.

A machine's speed drifts over minutes. Two runs of half a minute, one after the other, differ by several percent for no
reason of theirs; taking turns of a second, both meet the same machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_LOOK = 0.005  # seconds


@dataclass
class Turns:
    """One command, stopped and continued.

    Attributes:
        command: What to run.
        seconds_of: Called with what it said so far; gives the seconds that its measured part took by the clock, as
            soon as that part is over, and None before.
        turn_seconds: How long a turn of it is.
        said: What it wrote to standard output, when it has ended.
        memory: Its peak, MiB.
        seconds: What the measured part took, without the turns of others.
        began: When it was started, by `time.time()`, and `ended`: when it had ended.
    """

    command: list[str]
    seconds_of: Callable[[str], float | None]
    turn_seconds: float = 1.0
    said: str = ""
    memory: float = 0.0
    seconds: float | None = None
    began: float = 0.0
    ended: float = 0.0
    _waits: list[tuple[float, float]] = field(default_factory=list)
    _stopped: float = 0.0
    _process: Any = None

    def start(self) -> None:
        self.began = time.time()
        self._out, self._err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 (read until it ends)
        self._process = subprocess.Popen(self.command, stdout=self._out, stderr=self._err, start_new_session=True)
        self._stop()

    def _stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)
        self._stopped = time.time()

    def turn(self) -> bool:
        """Lets it run for a turn; whether it has ended.

        Raises:
            RuntimeError: It failed.
        """
        self._waits.append((self._stopped, time.time()))
        os.killpg(self._process.pid, signal.SIGCONT)
        end = time.time() + self.turn_seconds
        while time.time() < end:
            time.sleep(_LOOK)
            self._look()
            pid, status, used = os.wait4(self._process.pid, os.WNOHANG)
            if pid:
                return self._ended(status, used)
        self._stop()
        return False

    def _look(self) -> None:
        if self.seconds is None and (took := self.seconds_of(self._read(self._out))) is not None:
            end = time.time()
            self.seconds = self.own(end - took, end)

    def own(self, begin: float, end: float) -> float:
        """Seconds between two times of `time.time()` without the turns of others."""
        return end - begin - sum(max(0.0, min(b, end) - max(a, begin)) for a, b in self._waits)

    def _ended(self, status: int, used: Any) -> bool:
        self.ended = time.time()
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.said, self.memory = self._read(self._out), used.ru_maxrss / 1024
        if self._process.returncode or self.seconds is None:
            raise RuntimeError(f"{' '.join(self.command)[:300]}: {self._read(self._err)[-2000:]}")
        return True

    @staticmethod
    def _read(file: Any) -> str:
        return os.pread(file.fileno(), 1 << 24, 0).decode()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def in_turn(runs: Sequence[Turns]) -> None:
    """Runs all of them to their ends.

    Raises:
        RuntimeError: One failed; the others are ended.
    """
    try:
        for run in runs:
            run.start()
        left = list(runs)
        while left:
            left = [run for run in left if not run.turn()]
    finally:
        for run in runs:
            run.kill()
