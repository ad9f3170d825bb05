"""Runs llama.cpp's HTTP server in a child process, sends requests, and explains why where it has died."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from gemma_tune.child import python_module
from gemma_tune.engines.json_client import JsonClient, Unreachable
from gemma_tune.errors import RunError

_LOG_LINES = 8
# Of a line in llama.cpp's log: time, level
_STAMP = re.compile(r"^[\d.]+ [A-Z] ")


class EngineUnavailable(RunError):
    """llama.cpp isn't installed, can't load the file, or has died; the message says which, with the end of its log."""


class LlamaServer:
    """llama.cpp's server with one file loaded.

    Args:
        file: A GGUF file.
        context: Maximum tokens of each slot.
        slots: Requests computed at once.
        threads: CPU threads.
        exact: Keys and values in float32, and only kernels that don't round.
        timeout: Seconds for loading the file, and for one request.
        adapter: A GGUF LoRA file that is put onto it, or None.

    Raises:
        EngineUnavailable: The package isn't installed, or llama.cpp doesn't load the file.
    """

    def __init__(
        self,
        file: Path,
        context: int,
        slots: int,
        threads: int,
        exact: bool,
        timeout: float,
        adapter: Path | None = None,
    ) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise EngineUnavailable("llama.cpp isn't installed: pip install 'gemma_tune[gguf]' brings it (xllamacpp).")
        if not file.is_file():
            raise EngineUnavailable(f"{file}: there is no such file.")
        self.file, self._timeout, key = file, timeout, secrets.token_hex(16)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (the child writes it)
        self._child = subprocess.Popen(
            python_module("gemma_tune.engines.llama_child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Waiting threads sleep: on cores that others use too, two spinning threads took 15 times as long as one
            env={"GOMP_SPINCOUNT": "0", **os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        self.close = weakref.finalize(self, _end, self._child)  # at the interpreter's end, too
        options = {"file": str(file), "context": context, "slots": slots, "threads": threads, "exact": exact}
        options["adapter"] = str(adapter) if adapter else None
        try:
            address = self._start({**options, "key": key})
        except BaseException:  # Ctrl-C, too
            self.close()
            raise
        self._client = JsonClient(address, timeout, key, "llama.cpp")

    def _start(self, options: Mapping[str, Any]) -> str:
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(json.dumps(options) + "\n")
            self._child.stdin.flush()
        except OSError:
            raise self._dead("can't be started") from None
        said: list[str] = []
        reader = threading.Thread(
            target=lambda out: said.append(out.readline()), args=[self._child.stdout], daemon=True
        )
        reader.start()
        reader.join(self._timeout)
        if reader.is_alive():
            raise self._dead(f"didn't load it within {self._timeout:g} seconds")
        if not said or not said[0]:
            raise self._dead("can't load it")
        return str(json.loads(said[0])["address"])

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a request, from JSON.

        Args:
            path: For example `/completion`.
            **body: What is asked.

        Raises:
            EngineUnavailable: llama.cpp has died, or doesn't answer in time.
            RunError: It refuses the request.
        """
        return self._asked(lambda client: client.post(path, **body))

    def get(self, path: str) -> Any:
        """See `post`."""
        return self._asked(lambda client: client.get(path))

    def _asked(self, ask: Callable[[JsonClient], Any]) -> Any:
        try:
            return ask(self._client)
        except Unreachable as error:
            raise self._dead(f"gave {error}" if error.timed_out else "has died") from None

    def _dead(self, what: str) -> EngineUnavailable:
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
        return EngineUnavailable(f"{self.file}: llama.cpp {what}{ended}.{' It said:' + log if log else ''}")


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe
        with contextlib.suppress(OSError):  # the pipe has no reader any more
            pipe.close()
