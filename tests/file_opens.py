"""How often files are opened, as Python's audit events say it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_COUNTING: list[Counter[str]] = []


def _hook(event: str, words: tuple[Any, ...]) -> None:
    if event == "open" and _COUNTING and isinstance(words[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(words[0]))
        for counter in _COUNTING:
            counter[path] += 1


sys.addaudithook(_hook)  # there is no way to take one away; without a counter it does nothing


@contextmanager
def counted_opens() -> Iterator[Counter[str]]:
    """Counts the opens of every file, by its absolute path; native code that opens files itself isn't seen."""
    counter: Counter[str] = Counter()
    _COUNTING.append(counter)
    try:
        yield counter
    finally:
        _COUNTING.remove(counter)
