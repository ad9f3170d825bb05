"""Checkpoints and data sets of the Hub that can't be had: the real libraries, asking a server that says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gemma_tune.run.paths import ASSETS

SAMPLE = ASSETS / "sample" / "train.jsonl"


class Hub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does: `closed/…` is gated, and everything else isn't there."""

    def answer(self) -> None:
        gated = "closed/" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "Access to this model is restricted." if gated else "Repository not found")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = answer

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


ROWS = ["data=messages", f"data.train_file={SAMPLE}"]
# What is asked for, and parts of the answer
ASKED = {
    "gated model": (
        ["model.model_name_or_path=closed/gemma-3-4b-it", *ROWS],
        ["model.model_name_or_path=closed/gemma-3-4b-it: it can't be loaded", "accept the licence", "hf auth login",
         "local folder"],
    ),
    "unknown model": (
        ["model.model_name_or_path=nobody/gemma-9", *ROWS],
        ["model.model_name_or_path=nobody/gemma-9: it can't be loaded", "check the name", "local folder"],
    ),
    "gated data": (
        ["data=auto", "data.dataset_name=closed/rows"],
        ["data.dataset_name=closed/rows:train: it can't be loaded", "accept its terms", "hf auth login"],
    ),
}  # fmt: skip
ASK_EACH = """
import json, sys
from gemma_tune.__main__ import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print(f"exit status {code}\\n-----", file=sys.stderr)
"""


@pytest.mark.slow
def test_the_messages(hub: str, tmp_path: Path) -> None:
    """All in one process of its own: the libraries read the server's address when they are imported."""
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    common = ["recipe=lora_sft", "tracker=none", f"output_dir={tmp_path / 'run'}"]
    every = json.dumps([[*common, *words] for words, _ in ASKED.values()])
    done = subprocess.run([sys.executable, "-c", ASK_EACH, every], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    said = done.stderr.split("-----\n")[:-1]
    for (name, (_, parts)), text in zip(ASKED.items(), said, strict=True):
        assert text.endswith("exit status 2\n"), (name, text)
        message = text.split("gemma_tune: ")[-1]
        assert all(part in message for part in parts), (name, message)
    assert not (tmp_path / "run").exists()
