"""JSON over HTTP with connections that are kept, one for each thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from gemma_tune.errors import RunError, quoted


class Unreachable(Exception):
    """There was no answer; the text says why: a timeout, or what the connection said.

    Attributes:
        timed_out: Whether the server took the request and gave no answer in time.
    """

    def __init__(self, why: str, timed_out: bool) -> None:
        super().__init__(why)
        self.timed_out = timed_out


class Refused(RunError):
    """The server answered with an error.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class JsonClient:
    """A client of one server.

    Args:
        url: Where it answers: `http://127.0.0.1:8000`, perhaps with the beginning of every path.
        timeout: Seconds for one request.
        key: What is sent as `Authorization: Bearer KEY`; None: nothing.
        name: The server's name in messages.
    """

    def __init__(self, url: str, timeout: float, key: str | None = None, name: str = "the server") -> None:
        parts = urlsplit(url)
        self._host, self._begin, self._timeout, self._name = parts.netloc, parts.path.rstrip("/"), timeout, name
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._local = threading.local()

    def get(self, path: str) -> Any:
        """See `post`."""
        return self._answer("GET", path, None)

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a request, from JSON.

        Args:
            path: For example `/completion`.
            **body: What is asked.

        Raises:
            Unreachable: There is no server, it has died, or it gives no answer in time.
            Refused: It refuses the request.
            RunError: It answers with what is no JSON.
        """
        return self._answer("POST", path, json.dumps(body).encode())

    def stream(self, path: str, **body: Any) -> Iterator[Any]:
        """The events of an answer that is written while it is asked for, from JSON; whoever stops early ends it.

        It has a connection of its own, which is closed with the iterator: that is how a server learns of the end.

        Args:
            path: For example `/completion`.
            **body: What is asked; `stream` is set.

        Raises:
            Unreachable: There is no server, it has died, or it gives no event in time.
            Refused: It refuses the request, or ends with an error.
            RunError: An event is no JSON.
        """
        connection = self._kind(self._host, timeout=self._timeout)
        try:
            connection.request("POST", self._begin + path, json.dumps({**body, "stream": True}).encode(), self._headers)
            response = connection.getresponse()
            if response.status != 200:
                self._decoded(path, response.status, response.read())
            for line in response:
                name, _, text = line.decode("utf-8").strip().partition(": ")
                if name in ("data", "error") and text != "[DONE]":
                    yield self._event(path, name, text)
        except TimeoutError:
            raise Unreachable(f"no answer within {self._timeout:g} seconds", timed_out=True) from None
        except (OSError, HTTPException) as error:
            raise Unreachable(str(error) or type(error).__name__, timed_out=False) from None
        finally:
            connection.close()

    def _event(self, path: str, name: str, text: str) -> Any:
        """What an event of a stream says, from JSON; servers name an error in its line, or in its data."""
        event = self._decoded(path, 200, text.encode())
        error = event.get("error") if isinstance(event, dict) else None
        if name == "error" or error:
            code = error.get("code") if isinstance(error, dict) else None
            raise Refused(f"{self._name} ended {path}: {_reason(event)}", code if isinstance(code, int) else 500)
        return event

    def _answer(self, method: str, path: str, body: bytes | None) -> Any:
        return self._decoded(path, *self._send(method, self._begin + path, body))

    def _decoded(self, path: str, status: int, text: bytes) -> Any:
        """What an answer says, from JSON; raises Refused where that is an error."""
        try:
            answer = json.loads(text)
        except ValueError:  # also bytes that are no UTF-8
            if status == 200:
                raise RunError(f"{self._name} answered {path} with {text[:80]!r}, which is no JSON.") from None
            answer = text[:200].decode("utf-8", "replace")
        if status != 200:
            raise Refused(f"{self._name} refused {path}: {_reason(answer)}", status)
        return answer

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        for kept in (True, False):
            connection = self._connection(kept)
            fresh = connection.sock is None
            try:
                connection.request(method, path, body, self._headers)
                response = connection.getresponse()
                return response.status, response.read()
            except TimeoutError:
                connection.close()
                raise Unreachable(f"no answer within {self._timeout:g} seconds", timed_out=True) from None
            except (OSError, HTTPException) as error:
                connection.close()
                # A connection that was kept is closed by the server after some seconds
                if fresh or not kept:
                    raise Unreachable(str(error) or type(error).__name__, timed_out=False) from None
        raise AssertionError("unreachable")

    def _connection(self, kept: bool) -> HTTPConnection:
        """This thread's connection, or a new one."""
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None or not kept:
            connection = self._local.connection = self._kind(self._host, timeout=self._timeout)
        return connection


def _reason(answer: Any) -> str:
    """What an error's JSON says, in the forms of llama.cpp, vLLM, OpenAI and FastAPI."""
    if not isinstance(answer, dict):
        return quoted(answer)
    error = answer.get("error", answer.get("detail", answer.get("message", answer)))
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
