"""Memory that the C library keeps between steps, in place of handing it back to the system and asking for it again.

glibc maps blocks above a threshold (which grows to 32 MiB at most) anew each time, and gives the top of its heap back
once it is free; the system clears every page of what it hands out. A training step asks for the same blocks again and
again. torch's allocator for GPUs keeps them by itself, and other C libraries have no `mallopt`.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_MOST = 2**31 - 1  # what an int holds
_THRESHOLDS = (1 << 30, 32 << 20)  # earlier versions of glibc refuse more than 32 MiB


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for this process, for good; whether it is done, which other C libraries can't."""
    if not _is_glibc():
        return False
    libc = ctypes.CDLL(None)
    raised = any(libc.mallopt(_MMAP_THRESHOLD, size) for size in _THRESHOLDS)
    return raised and bool(libc.mallopt(_TRIM_THRESHOLD, _MOST))


def hand_back_freed_memory() -> None:
    """Gives all freed memory back to the system at once, where the C library is glibc.

    Keys and values that grow with every generated token leave a heap of several times their size full of holes, which
    what comes next doesn't fit into.
    """
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
