"""How often Python looks for cycles of objects that nobody uses any more (`gc`): seldom while a command starts.

Libraries make more than a million objects while they are imported, and hardly one of them becomes garbage. Python would
look through all of them many times, which is a fifth of the time of their import, and once more when the process ends,
which takes another second.
"""

from __future__ import annotations

import atexit
import gc

_SELDOM = 1_000_000  # objects made since the last look; 700 in Python 3.11
_usual: list[tuple[int, int, int]] = []  # what is to be put back


def look_seldom() -> None:
    """For a process of ours that begins: looks seldom until `look_as_usual`, and not when the process ends."""
    if not _usual:
        _usual.append(gc.get_threshold())
        gc.set_threshold(_SELDOM, *_usual[0][1:])
        atexit.register(gc.freeze)


def look_as_usual() -> None:
    """Before rows are rendered or tensors made, which such cycles may hold; what is there by then stays.

    Nothing where `look_seldom` was not called.
    """
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual.pop())
