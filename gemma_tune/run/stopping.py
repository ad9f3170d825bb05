"""Stopping a run: Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and the end of its time. Imports no torch.

The first signal ends the optimizer step under way, and a checkpoint is saved; where nothing is trained, and at the
second signal, the run ends at once.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from gemma_tune.process_failures import ending
from gemma_tune.processes import highest, several

# Slurm announces the end of a job by SIGTERM, or by SIGUSR1 where it is asked to
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
# Seconds in which torchrun repeats a signal that a terminal has sent to all processes
_ONE_SIGNAL = 3.0
# Exit statuses of a run that was asked to end: by Ctrl-C, by another signal
STOPPED = (130, 143)


class Stopped(KeyboardInterrupt):
    """A run that was asked to end.

    Attributes:
        code: The exit status: 130 after Ctrl-C, 143 after another signal, 0 where its time was up.
    """

    def __init__(self, code: int, message: str = "") -> None:
        self.code = code
        super().__init__(message)


class Stops:
    """Whether a run is asked to end.

    Attributes:
        asked: The exit status that it is to end with, or None.
        waits: Whether a step is under way, which is done before the run ends.
        writes: Whether the run has ended, and writes how.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.waits = self.writes = False
        self._begun = time.monotonic()
        self._asked_at = -math.inf

    def on_signal(self, number: int, _: Any = None) -> None:
        """Takes a signal.

        Raises:
            Stopped: Nothing is to be waited for, or it is the second one.
        """
        again = several() and time.monotonic() - self._asked_at < _ONE_SIGNAL
        if self.writes or again or ending():
            return
        self._asked_at = time.monotonic()
        code = STOPPED[number != signal.SIGINT]
        if not self.waits or self.asked is not None:
            raise Stopped(code)
        self.asked = code
        name = "Ctrl-C" if code == 130 else signal.Signals(number).name
        print(
            f"\n{name}: the run ends after this step, and saves a checkpoint; once more ends it now.", file=sys.stderr
        )

    def __reduce__(self) -> tuple[type[Stops], tuple[()]]:
        """For another process: it has signals and a clock of its own."""
        return Stops, ()

    def agree(self) -> None:
        """Makes it the same on all processes of a run: asked on one is asked on all; a collective."""
        asked = highest(-1 if self.asked is None else self.asked)
        if asked >= 0:  # a signal may have come meanwhile
            self.asked = int(asked)

    def over_time(self, most: float | None) -> bool:
        """Whether the run has taken its time, in seconds; from then on it is asked to end."""
        if most is not None and self.asked is None and time.monotonic() - self._begun >= most:
            self.asked = 0
        return self.asked == 0

    def end_in_time(self, most: float | None) -> None:
        """For places between two trainings of a run. Raises Stopped where its time is over, on any of its processes."""
        self.over_time(most)
        self.agree()
        if self.asked == 0:
            raise Stopped(0)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it, the first signal waits for the end of the step."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False


@contextlib.contextmanager
def listening(stops: Stops) -> Iterator[None]:
    """Within it, signals are taken by `stops`; only in the main thread, which alone may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    ignored = [n for n in numbers if signal.getsignal(n) is signal.SIG_IGN]  # nohup ignores SIGHUP, and so do we
    before = {n: signal.signal(n, stops.on_signal) for n in numbers if n not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
