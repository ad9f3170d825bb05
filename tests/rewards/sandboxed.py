"""What the tests of the sandbox and of the code reward share."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from gemma_tune.rewards.base import Completion, Reward, Task
from gemma_tune.rewards.sandbox import Limits, SandboxResult

needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap (bwrap) isn't installed: apt install bubblewrap"
)
LIMITS = Limits(seconds=5.0, memory_mb=256, threads=4, file_mb=4, output=1 << 16)
SHORT = dataclasses.replace(LIMITS, seconds=1.0)
DOUBLE = [{"args": [x], "result": 2 * x} for x in (3, -1)]
ECHO = [{"input": "a\nb\n", "output": "a\nb\n"}]


@contextmanager
def watched() -> Iterator[set[psutil.Process]]:
    """The processes below this one that began meanwhile; another test may have left some that serve later ones."""
    before = {*psutil.Process().children(recursive=True)}
    seen: set[psutil.Process] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            seen.update({*psutil.Process().children(recursive=True)} - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def printed(outcome: SandboxResult) -> str:
    """What a program printed that ended well."""
    assert outcome.status == 0
    return outcome.output.decode().strip()


def task(tests: Any, entry_point: str | None = "f") -> Task:
    """A row with tests."""
    return Task("rows.jsonl:7", row={"tests": tests, "entry_point": entry_point})


def score(reward: Reward, code: str, tests: Any, **said: Any) -> float | None:
    """The score of one completion."""
    return reward([Completion(f"So:\n```python\n{code}\n```\n", **said)], [task(tests)])[0]
