"""Which files hold the same."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache, partial
from pathlib import Path

_SLICE = 64 << 10  # bytes at the beginning, in the middle and at the end


def content_key(path: str | Path) -> str:
    """What tells a medium from others wherever it lies: a digest of its size and of three slices of 64 KiB.

    A file of up to 192 KiB is read whole. A file that can't be read is told by its name.
    """
    found = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found.update(size.to_bytes(8, "little"))
            for start in sorted({0, max(0, min(_SLICE, size), (size - _SLICE) // 2), max(0, size - _SLICE)}):
                file.seek(start)
                found.update(file.read(_SLICE))
    except OSError:
        return str(path)
    return found.hexdigest()


def content_digest(path: str | Path) -> bytes:
    """A digest of every byte of a file, 16 bytes; it is read again only where its size or time of change is another.

    Raises:
        OSError: It can't be read.
    """
    found = os.stat(path)
    return _digest(str(path), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _digest(path: str, size: int, changed: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).digest()
