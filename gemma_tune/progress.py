"""What a run is at: a line as a long phase begins, and of a loop a bar in a terminal or, where there is none, lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS = 20  # between two lines, and before the first: a short loop says nothing


def phase(what: str) -> None:
    """Prints on stderr which phase begins that may take minutes.

    Args:
        what: `checking gguf: its weights, then in llama.cpp`.
    """
    print(what, file=sys.stderr, flush=True)


class _Lines:
    """A stream for tqdm that writes every state of its bar as a line of its own.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Writes what is left of a text without the blanks and returns by which tqdm overwrites a bar."""
        if said := text.strip():
            self._stream.write(f"{said}\n")

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()


def progress(
    iterable: Iterable[Any] | None = None, *, total: int | None = None, desc: str, unit: str, seconds: float = _SECONDS
) -> Any:
    """A bar of tqdm on stderr; into a file or a pipe a line every 20 seconds.

    Args:
        iterable: What is looped over; None: the loop calls `update`.
        total: How many there are; None: as many as `iterable` says.
        desc: What is done.
        unit: What is counted, with a blank before it.
        seconds: Between two lines.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, desc=desc, total=total, unit=unit, leave=False)
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        unit=unit,
        leave=False,
        file=_Lines(sys.stderr),
        delay=seconds,
        mininterval=seconds,
        miniters=1,
        position=0,  # never below another: that would need a terminal's movements
        bar_format="{desc}: {n_fmt} of {total_fmt}{unit}, {remaining} left",
    )
