"""A server of another package: waited for, asked, and ended together with whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemma_tune.child import python_module
from gemma_tune.engines.json_client import Refused
from gemma_tune.engines.llama_server import EngineUnavailable
from gemma_tune.engines.server_process import ServerProcess, free_port

# Answers as soon as the file `ready` is there; /die ends it, and it starts a process of its own
SERVER = """
import json, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
port, key, pids = int(sys.argv[1]), os.environ["KEY"], sys.argv[2]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(pids, "w").write(f"{os.getpid()} {child.pid} {os.getcwd()}")
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        if self.path == "/die":
            print("the memory is full", flush=True); os._exit(7)
        good = self.headers.get("Authorization") == f"Bearer {key}"
        body = json.dumps({"path": self.path} if good else {"error": {"message": "no key"}}).encode()
        self.send_response(200 if good else 401)
        self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"])); self.do_GET()
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def command(tmp_path: Path, port: int) -> list[str]:
    (tmp_path / "server.py").write_text(SERVER, encoding="utf-8")
    return [sys.executable, str(tmp_path / "server.py"), str(port), str(tmp_path / "pids")]


def start(tmp_path: Path, timeout: float = 30.0) -> ServerProcess:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    return ServerProcess(command(tmp_path, port), {"KEY": "k"}, url, "/models", "vLLM", key="k", timeout=timeout)


def alive(pid: str) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def gone(pids: list[str]) -> bool:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def test_asks_with_its_key_and_ends_with_all_its_processes(tmp_path: Path) -> None:
    with start(tmp_path) as server:
        assert server.get("/a") == {"path": "/a"} and server.post("/b", x=1) == {"path": "/b"}
        *pids, folder = (tmp_path / "pids").read_text().split()
        assert all(map(alive, pids)) and Path(folder) != Path.cwd()  # a folder named vllm there would be imported
    assert gone(pids)


def test_a_server_that_dies_says_why(tmp_path: Path) -> None:
    server = start(tmp_path)
    with pytest.raises(EngineUnavailable, match=r"vLLM has died \(exit status 7\). It said:\n  the memory is full"):
        server.get("/die")
    assert gone((tmp_path / "pids").read_text().split()[:2])


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with pytest.raises(EngineUnavailable, match=r"doesn't start \(exit status 3\). It said:\n  no such model"):
        ServerProcess(program, {}, f"http://127.0.0.1:{free_port()}", "/models", "vLLM")
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(EngineUnavailable, match=r"didn't load the weights within 0\.5 seconds"):
        ServerProcess(slow, {}, f"http://127.0.0.1:{free_port()}", "/models", "vLLM", timeout=0.5)


def test_a_wrong_key_is_refused_and_not_taken_for_a_death(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        ServerProcess(command(tmp_path, port), {"KEY": "k"}, url, "/models", "vLLM", key="other") as server,
        pytest.raises(Refused, match="vLLM refused /a: no key") as refused,
    ):
        server.get("/a")
    assert refused.value.status == 401


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_killed_with_whoever_started_it(tmp_path: Path) -> None:
    """Nothing is left behind, though nothing can be tidied up after SIGKILL."""
    child = subprocess.Popen(
        python_module("gemma_tune.engines.tied_child", *command(tmp_path, free_port())),
        stdin=subprocess.PIPE,
        env={**os.environ, "KEY": "k"},
    )
    until = time.monotonic() + 20
    while not (tmp_path / "pids").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.1)
    pids = (tmp_path / "pids").read_text().split()[:2]
    assert all(map(alive, pids))
    assert child.stdin
    child.stdin.close()  # as the kernel does for a process that was killed
    assert gone(pids) and child.wait(20) != 0
