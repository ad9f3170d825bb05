"""Which files hold the same, without reading all of them."""

from __future__ import annotations

import hashlib
import os
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
