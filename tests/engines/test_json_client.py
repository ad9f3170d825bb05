"""Answers that are streamed: their events, and errors in the middle of one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gemma_tune.engines.json_client import JsonClient, Refused
from gemma_tune.errors import RunError


@contextmanager
def saying(*lines: str) -> Iterator[str]:
    """A server that answers everything with these lines."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write("".join(f"{line}\n\n" for line in lines).encode())

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ('data: {"error": {"code": 503, "message": "no room"}}', 503),
        ('data: {"error": {"code": "x", "message": "no room"}}', 500),
        ('error: {"code": 500, "message": "no room"}', 500),
    ],
)
def test_an_error_in_the_middle_of_an_answer(line: str, status: int) -> None:
    """As servers say it: in the data of an event, or in a line of its own. An error that is null is none."""
    with saying('data: {"tokens": [5], "error": null}', line, 'data: {"tokens": [6]}') as url:
        events = JsonClient(url, 10.0, name="llama.cpp").stream("/completion")
        assert next(events)["tokens"] == [5]
        with pytest.raises(Refused, match=r"llama\.cpp ended /completion: no room") as refused:
            next(events)
    assert refused.value.status == status


def test_events_to_the_end() -> None:
    with saying('data: {"tokens": [5]}', ": ping", "data: [DONE]") as url:
        assert list(JsonClient(url, 10.0).stream("/completion")) == [{"tokens": [5]}]
    with saying("data: {broken") as url, pytest.raises(RunError, match="which is no JSON"):
        list(JsonClient(url, 10.0).stream("/completion"))
