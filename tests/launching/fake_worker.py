"""A process of a run without the run: `fake_worker.py FOLDER WHAT…`, with what each rank does, `RANK:WHAT`.

It leaves its exit as the real one does, and joins nothing but the store, where it says that it failed first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from gemma_tune.launching.handover import write_message
from gemma_tune.processes import rank

FOLDER = Path(sys.argv[1])
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "OMP_NUM_THREADS")
heard: list[int] = []


def end(status: int, message: str) -> None:
    write_message(FOLDER, rank(), message)
    sys.exit(status)


def hear(number: int, _: object) -> None:
    heard.append(number)
    with (FOLDER / f"heard-{rank()}").open("a") as file:
        file.write(f"{signal.Signals(number).name}\n")


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, hear)
    (FOLDER / f"begun-{rank()}").write_text("\n".join(f"{name}={os.environ.get(name)}" for name in NAMES))
    while len(list(FOLDER.glob("begun-*"))) < int(os.environ["LOCAL_WORLD_SIZE"]):
        time.sleep(0.02)
    mine = next((w.partition(":")[2] for w in sys.argv[2:] if w.startswith(f"{rank()}:")), sys.argv[2])
    what, _, value = mine.partition("=")
    if what == "mistake":
        end(2, f"rank {rank()} can't read its file.")
    if what == "fails":
        end(1, f"the loss is NaN on rank {rank()}.")
    if what == "killed":
        os.kill(os.getpid(), int(value))
    if what == "waits":  # as a run does in a step: it ends some time after it was asked to
        while not heard:
            time.sleep(0.02)
        time.sleep(float(value) * (rank() == 0))
        (FOLDER / f"saved-{rank()}").touch()
        end(
            130 if heard[0] == signal.SIGINT else 143,
            f"interrupted. Said by {rank()}" if rank() == 0 else "interrupted.",
        )
    if what == "sleeps":
        time.sleep(float(value))
    (FOLDER / f"done-{rank()}").touch()


if __name__ == "__main__":
    main()
