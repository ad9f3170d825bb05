"""How the processes of one run end: together, with one message, also where one of them hangs."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from gemma_tune.errors import EndedByOthers, FailedTogether, UserError, quoted
from gemma_tune.processes import (
    FAILED,
    NO_ANSWER,
    STOPPED,
    barrier,
    connect,
    fail_together,
    failure_of_others,
    from_main,
    gathered,
    group,
    is_main_process,
    rank,
    several,
)

T = TypeVar("T")

_GRACE_SECONDS = 10.0  # that a process has to end by itself after another one has failed


class Left(BaseException):
    """The main process goes on alone, and this one is done."""


class _Own:
    """What this process does where it must end."""

    def __init__(self) -> None:
        self.on_failure: Callable[[str], None] | None = None
        self.watched = self.ends = False


_own = _Own()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it, a process other than the first prints nothing."""
    if is_main_process():
        yield
        return
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (loggers made meanwhile keep it)
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def speaks(message: str) -> bool:
    """Whether this process says why the run ends: the first one that fails does, and the others are silent."""
    if not group.joined:
        return os.environ.get("LOCAL_RANK", "0") == "0"  # all see the same mistake, on each machine
    try:
        return bool(group.store.compare_set(FAILED, "", f"{rank()} {message}") == f"{rank()} {message}".encode())
    except RuntimeError:  # the store went with the process that held it, which has spoken
        return False


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Within it, a broken connection to a process that has failed becomes that process's own error.

    Raises:
        EndedByOthers: Another process failed, ended, or did not answer in time.
    """
    try:
        yield
    except (RuntimeError, OSError, KeyboardInterrupt) as error:  # torchrun ends the others by a signal
        if not several():  # what the first process does alone fails by itself
            raise
        _own.ends = True  # torchrun's signal to end comes now, too
        if message := failure_of_others(wait_seconds=1.0 if isinstance(error, KeyboardInterrupt) else 5.0):
            raise EndedByOthers(message) from error
        if not isinstance(error, KeyboardInterrupt) and (message := _of_connection(error)):
            raise EndedByOthers(message) from error
        raise


def together(work: Callable[[], T]) -> T:
    """What all processes do: where it fails on one of them it fails on all, with that one's error.

    Raises:
        FailedTogether: It failed on one of several processes.
    """
    if not several():
        return work()
    try:
        found = work()
    except FailedTogether:
        raise
    except Exception as error:
        raise_if_ended(error)
        fail_together(error)
    gathered(None)
    return found


def check_same(values: Mapping[str, Any]) -> None:
    """Raises UserError on all processes where a value is not the same on all of them; values by their names."""
    first, *others = gathered(dict(values))
    for other, found in enumerate(others, start=1):
        for name in sorted({*first, *found}):
            here, there = quoted(first.get(name)), quoted(found.get(name))
            if here != there:
                raise UserError(
                    f"launch: {name} is {there} on rank {other} and {here} on rank 0; give the same command with the "
                    "same installation and the same files on each machine."
                )


def announce_stop() -> None:
    """Tells the others that this process was asked to end: a signal may have reached it alone."""
    if several():
        with contextlib.suppress(RuntimeError):
            group.store.set(STOPPED, b"1")


def raise_if_ended(error: Exception) -> None:
    """For places that go on after an error: raises it where it means that another process has ended."""
    if isinstance(error, EndedByOthers) or (several() and _of_connection(error) is not None):
        raise error


def _of_connection(error: BaseException) -> str | None:
    """What an error of a collective operation means; None for any other error."""
    import torch.distributed as dist

    said = str(error).lower()
    if not (isinstance(error, dist.DistError) or any(word in said for word in ("gloo", "nccl", "process group"))):
        return None
    if "timed out" in said or "timeout" in said:
        return NO_ANSWER
    return (
        "another process has ended without a word; where its machine was out of memory, its log (dmesg) says "
        "which was killed."
    )


def ending() -> bool:
    """Whether this process is ending since another one has failed: it needs no signal for that."""
    return _own.ends or failure_of_others() is not None


@contextlib.contextmanager
def on_failure(write: Callable[[str], None]) -> Iterator[None]:
    """Within it, `write` is called with the reason where this process must end though it hangs."""
    _own.on_failure = write
    try:
        yield
    finally:
        _own.on_failure = None


def watch() -> None:
    """From here on this process ends some time after another one has failed, also where it waits for that one."""
    if group.joined and not _own.watched:
        _own.watched = True
        over = threading.Event()
        thread = threading.Thread(target=_watch, args=(connect(), over), daemon=True)
        thread.start()
        # Python ends a daemon's thread anywhere; within a call of the store's C++ code, that aborts the whole process
        atexit.register(thread.join)
        atexit.register(over.set)


def _watch(store: Any, over: threading.Event) -> None:
    """Ends this process some time after another one has failed, where it hangs in an operation that waits for it."""
    while not over.wait(0.5):
        try:
            failed = store.check([FAILED])
        except RuntimeError:
            failed = True
        if failed:
            break
    if over.wait(_GRACE_SECONDS):  # the usual end, with all files whole
        return
    message = failure_of_others() or "another process has failed."
    if _own.on_failure is not None:
        with contextlib.suppress(Exception):
            _own.on_failure(message)
    os._exit(1)


def go_on_alone() -> None:
    """After the last thing that all do together: the main process goes on, and the others leave.

    Raises:
        Left: On every process but the main one.
    """
    if several():
        barrier()
        group.go_alone(True)
        if not is_main_process():
            raise Left


@contextlib.contextmanager
def waiting_for_main() -> Iterator[None]:
    """A part of a run that the main process may end alone; afterwards all are together again."""
    begun = several()
    with contextlib.suppress(Left):
        yield
    if begun:
        group.go_alone(False)
        from_main(lambda: None)  # however long that takes
