"""An HTTP server of another package in a process of its own: started, waited for, asked, ended."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from gemma_tune.child import python_module
from gemma_tune.engines.json_client import JsonClient, Refused, Unreachable
from gemma_tune.engines.llama_server import EngineUnavailable
from gemma_tune.progress import phase

_LOG_LINES, _POLL, _ERRORS = 12, 0.25, 4
# `RuntimeError: …`, perhaps behind a process' name and a time
_ERROR = re.compile(r"\b[A-Z]\w*(Error|Exception): \S")


class ServerProcess:
    """A server that is ready to be asked; it ends with this process, whatever ends that.

    Args:
        command: The program and its arguments; nothing secret, since every user of the machine can read them.
        environment: What is added to this process' environment.
        url: Where it will answer.
        ready: A path that answers as soon as the weights are loaded.
        name: What it is called in messages.
        key: Its API key, if it has one.
        timeout: Seconds for loading the weights, and for one request.

    Raises:
        EngineUnavailable: It doesn't start, with the end of what it said.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        url: str,
        ready: str,
        name: str,
        key: str | None = None,
        timeout: float = 900.0,
    ) -> None:
        self.url, self.name, self._timeout = url, name, timeout
        self._client = JsonClient(url, timeout, key, name)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (the child writes it)
        # Not the current folder, in which a folder named like a package would be taken for it
        self._folder = tempfile.TemporaryDirectory(prefix="gemma-tune-server-", ignore_cleanup_errors=True)
        self._child = subprocess.Popen(
            python_module("gemma_tune.engines.tied_child", *command),
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self._folder.name,
            env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
            process_group=0,  # Ctrl-C in the terminal ends this process, which ends its child
        )
        self.close = weakref.finalize(self, _end, self._child, self._folder)  # at the interpreter's end, too
        try:
            self._wait(ready)
        except BaseException:  # Ctrl-C, too
            self.close()
            raise

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a request, from JSON.

        Raises:
            EngineUnavailable: The server has died, or doesn't answer in time.
            Refused: It refuses the request.
        """
        return self._asked(lambda client: client.post(path, **body))

    def get(self, path: str) -> Any:
        """See `post`."""
        return self._asked(lambda client: client.get(path))

    def wait(self) -> EngineUnavailable:
        """Waits until the server ends by itself; what to say then."""
        self._child.wait()
        return self._dead("has ended")

    @property
    def log(self) -> str:
        """All that it has said."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def _asked(self, ask: Callable[[JsonClient], Any]) -> Any:
        try:
            return ask(self._client)
        except Unreachable as error:
            raise self._dead(f"gave {error}" if error.timed_out else "has died") from None

    def _wait(self, ready: str) -> None:
        phase(f"{self.name} loads the weights")
        quick = JsonClient(self.url, 10.0, None, self.name)
        until = time.monotonic() + self._timeout
        while time.monotonic() < until:
            if self._child.poll() is not None:
                raise self._dead("doesn't start")
            with contextlib.suppress(Unreachable, Refused):
                self._probe(quick, ready)
                return
            time.sleep(_POLL)
        raise self._dead(f"didn't load the weights within {self._timeout:g} seconds")

    @staticmethod
    def _probe(client: JsonClient, ready: str) -> None:
        try:
            client.get(ready)
        except Refused as error:
            if error.status not in (401, 403):  # it is there, and wants its key
                raise

    def _dead(self, what: str) -> EngineUnavailable:
        """Ends the process; the error gives its exit status and the end of its log."""
        try:
            ended = f" (exit status {self._child.wait(timeout=2)})"  # it may be about to
        except subprocess.TimeoutExpired:
            ended = ""
        self.close()
        said = "".join(f"\n  {line[:300]}" for line in _causes(self.log.splitlines()))
        return EngineUnavailable(f"{self.name} {what}{ended}.{' It said:' + said if said else ''}")


def _causes(log: list[str]) -> list[str]:
    """The end of a log, and before it the errors further up: a worker says what is wrong before others fail for it."""
    lines = [line for line in log if line.strip()]
    end = lines[-_LOG_LINES:]
    errors = dict.fromkeys(line for line in lines[:-_LOG_LINES] if _ERROR.search(line))
    return [*list(errors)[-_ERRORS:], *end]


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def _end(child: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    if child.stdin:
        with contextlib.suppress(OSError):
            child.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=20)
    child.kill()
    child.wait()
    folder.cleanup()
