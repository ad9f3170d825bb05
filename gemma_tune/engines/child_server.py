"""An HTTP server in a child process of this Python, which never outlives it, and why it has died where it has."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import IO, Any

from gemma_tune.child import python_module
from gemma_tune.errors import RunError

_LOG_LINES = 8
# Of a line in llama.cpp's log: time, level
_STAMP = re.compile(r"^[\d.]+ [A-Z] ")


class EngineUnavailable(RunError):
    """An engine isn't installed, can't load the weights, or has died; the message says which, with its log's end."""


class ChildServer:
    """A module of ours that serves until its input ends.

    Args:
        module: Its dotted name. Its first line of input is JSON; it answers with a line, `{"address": …}`.
        options: What is that first line: unlike arguments and the environment, nobody else can read it.
        said: What is served by what, for messages: `x.gguf: llama.cpp`.
        timeout: Seconds until the address has to be there.
        environment: Variables beside those of this process.

    Raises:
        EngineUnavailable: It doesn't come to serve.
    """

    def __init__(
        self, module: str, options: Mapping[str, Any], said: str, timeout: float, environment: Mapping[str, str]
    ) -> None:
        self._said = said
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (the child writes it)
        self._child = subprocess.Popen(
            python_module(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **environment},
            process_group=0,  # Ctrl-C in the terminal ends this process, which ends its child
        )
        self.pid = self._child.pid
        self.close = weakref.finalize(self, _end, self._child)  # at the interpreter's end, too
        try:
            self.url = self._start(options, timeout)
        except BaseException:  # Ctrl-C, too
            self.close()
            raise

    def wait(self) -> EngineUnavailable:
        """Waits until the child ends by itself, which it never should; what to say then."""
        self._child.wait()
        return self.died("has died")

    def died(self, what: str) -> EngineUnavailable:
        """Stops the child; the error gives its exit status and the end of its log."""
        try:
            ended = f" (exit status {self._child.wait(timeout=5)})"  # it may be about to
        except subprocess.TimeoutExpired:
            ended = ""
        self.close()
        self._log.seek(0)
        lines = [
            _STAMP.sub("", line) for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()
        ]
        log = "".join(f"\n  {line}" for line in lines[-_LOG_LINES:])
        return EngineUnavailable(f"{self._said} {what}{ended}.{' It said:' + log if log else ''}")

    def _start(self, options: Mapping[str, Any], timeout: float) -> str:
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(json.dumps(options) + "\n")
            self._child.stdin.flush()
        except OSError:
            raise self.died("can't be started") from None
        said: list[str] = []
        reader = threading.Thread(
            target=lambda out: said.append(out.readline()), args=[self._child.stdout], daemon=True
        )
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise self.died(f"didn't load it within {timeout:g} seconds")
        if not said or not said[0]:
            raise self.died("can't load it")
        return str(json.loads(said[0])["address"])


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe
        with contextlib.suppress(OSError):  # the pipe has no reader any more
            pipe.close()
