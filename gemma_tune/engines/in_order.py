"""Requests to a server, several at once, with the answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from gemma_tune.progress import progress

T = TypeVar("T")
R = TypeVar("R")


def in_order(items: Sequence[T], work: Callable[[T], R], at_once: int, name: str) -> Iterator[R]:
    """The work on each item, in their order.

    Args:
        items: What is worked on.
        work: Called in a thread.
        at_once: Calls that run together.
        name: For the progress bar.
    """
    waiting: deque[Future[R]] = deque()
    bar = progress(total=len(items), desc=name, unit=" rows")
    with bar, ThreadPoolExecutor(at_once) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * at_once:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
