"""Runs a program that ends with the process that started it: `tied_child.py PROGRAM ARGUMENTS…`.

Servers of other packages start processes of their own, which go on when their parent is killed. Here the program has a
group of processes of its own, and the whole group is ended when this process' input ends: when whoever holds the other
end of the pipe has closed it or has died, by whatever signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

_SECONDS = 10.0  # to end in before they are killed


def end_group(group: int, seconds: float = _SECONDS) -> None:
    """Asks every process of a group to end, and kills what is left of it after some seconds."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.05)
            os.killpg(group, 0)  # raises where nobody is left
        os.killpg(group, signal.SIGKILL)


def main() -> None:
    """Starts the program and waits for its end, or for the end of the input; ends as the program does."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        sys.stdin.read()
        end_group(child.pid)

    for number in (signal.SIGINT, signal.SIGTERM):  # the one at the other end decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    end_group(child.pid)  # its own processes, where it was killed
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
