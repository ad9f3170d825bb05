"""Renders rows in a process of its own, without torch: `python -P gemma_tune/child.py gemma_tune.data.render_worker`.

It reads what it needs and then chunks of records from stdin, answers each on stdout, and ends with its stdin. Messages
are the number of bytes, eight bytes long, and a pickle. An answer without bytes says that another process must do it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

from gemma_tune.chat.media import media_in
from gemma_tune.child import python_module
from gemma_tune.data.records import Record
from gemma_tune.data.rendered_chunk import RowRenderer, render_chunk


class RenderProcess:
    """A process that renders chunks.

    Args:
        renderer: A pickled `RowRenderer`.

    Attributes:
        process: It.
    """

    def __init__(self, renderer: bytes) -> None:
        # Each process is one of several, up to as many as there are cores
        alone = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            python_module("gemma_tune.data.render_worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **alone},
        )
        self._first: bytes | None = renderer

    def ask(self, records: bytes) -> bytes:
        """The pickled `RenderedChunk` of pickled records; empty where this process can't render them, or has ended."""
        process = self.process
        assert process.stdin and process.stdout
        try:
            for message in filter(None, (self._first, records)):
                _write(process.stdin, message)
            self._first = None
            return _read(process.stdout)
        except (OSError, ValueError, EOFError):  # it has ended
            return b""

    def end(self) -> None:
        """Ends the process, whatever it is at."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Closes the pipes, once nobody waits at them."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with contextlib.suppress(OSError):  # what was not yet written
                pipe.close()


def _write(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(len(message).to_bytes(8, "little"))
    pipe.write(message)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    size = pipe.read(8)
    message = pipe.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
    if len(size) < 8 or len(message) < int.from_bytes(size, "little"):
        raise EOFError
    return message


def answer(records: Sequence[Record], renderer: RowRenderer) -> bytes:
    """The pickled `RenderedChunk` of some records; empty where they have media, or can't be rendered at all."""
    if any(record.messages and media_in(record.messages) for record in records):
        return b""
    try:
        return pickle.dumps(render_chunk(records, renderer), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:  # the process that asks renders it again, and says what is wrong
        return b""


def main(asked: IO[bytes], answers: IO[bytes]) -> None:
    """The process: the renderer first, then chunks of records."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; this one ends with its stdin
    renderer: Any = None
    try:
        renderer = pickle.loads(_read(asked))
        # A chunk has more objects than Python waits for before it looks for cycles: once after each of them is enough.
        # Templates with macros, as Gemma 4's, leave some that hold the row.
        gc.freeze()
        gc.set_threshold(100_000)
        while True:
            _write(answers, answer(pickle.loads(_read(asked)), renderer))
            gc.collect(0)
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
