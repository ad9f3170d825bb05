"""The lock of a run folder: one process at a time writes there, and a dead one keeps nothing. Imports no torch."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gemma_tune.errors import UserError, shortened
from gemma_tune.untrusted import MIB, read_object

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder that exists; the system frees it when this process dies, however it does.

    Raises:
        UserError: Another process holds it.
        OSError: The folder can't be written.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if not _take(file) or not _is_there(file, folder / LOCK):
            raise UserError(_held(folder))
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)


def is_locked(folder: Path) -> bool:
    """Whether a living process writes into a run folder."""
    try:
        with (folder / LOCK).open("r+", encoding="utf-8") as file:
            return not _take(file)
    except OSError:
        return False


def refuse_locked(folder: Path) -> None:
    """Raises UserError where another process writes into a run folder, with its host and number."""
    if is_locked(folder):
        raise UserError(_held(folder))


def _take(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_there(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one of this name: its holder deletes it at its end."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _held(folder: Path) -> str:
    try:
        holder = read_object(folder / LOCK, MIB)
        who = shortened(f"process {holder['pid']} on {holder['host']}")
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"output_dir={folder}: {who} is writing there; wait for it, end it, or choose another output_dir."
