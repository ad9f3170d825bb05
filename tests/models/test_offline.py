"""Without a network the Hub is asked once, and what a name alone tells is answered before that."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gemma_tune.cli.compose import compose_config
from gemma_tune.cli.runner import run_recipe
from gemma_tune.errors import UserError
from gemma_tune.models import hub
from gemma_tune.models.estimate import capacity
from gemma_tune.run.paths import ASSETS

ROWS = ["data=messages", f"data.train_file={ASSETS / 'sample' / 'train.jsonl'}"]


class BlackHole:
    """A server that takes every connection and answers none; `asked` counts them."""

    def __init__(self) -> None:
        self.asked = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def _take(self) -> None:
        while True:
            try:
                self._taken.append(self._listening.accept()[0])
            except OSError:
                return
            self.asked += 1

    def close(self) -> None:
        for taken in [self._listening, *self._taken]:
            taken.close()


@pytest.fixture
def black_hole() -> Iterator[BlackHole]:
    hole = BlackHole()
    yield hole
    hole.close()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if nobody had said that there is no network."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    hub.no_network.cache_clear()
    yield
    hub.no_network.cache_clear()


ASK_EACH = """
import json, sys
from gemma_tune.__main__ import main
for words in json.loads(sys.argv[1]):
    print(f"exit status {main(words)}\\n-----", file=sys.stderr)
"""
# What is asked for, and parts of the answer
ASKED = {
    "a family without a classifier": (
        ["recipe=reward_model", "model=gemma3n_e2b_it", "data=sample_preferences"],
        ["no class for sequence classification of Gemma 3n"],
    ),
    "a model": (
        ["recipe=chat", "model=gemma3_1b_it", "chat.prompt=Hi."],
        ["gemma_tune: no network: model.model_name_or_path=google/gemma-3-1b-it: ", "doesn't answer|timed out",
         "`hf download google/gemma-3-1b-it`", "model.model_name_or_path=path/to/folder"],
    ),
    "too large": (
        ["recipe=full_sft", "model=gemma3_27b_it", *ROWS], ["gemma-3-27b-it: its weights, gradients", "are free"]
    ),
    "a data set": (
        ["recipe=lora_sft", "data=auto", "data.dataset_name=nobody/rows"],
        ["gemma_tune: no network: data.dataset_name=nobody/rows:train: ", "data.train_file",
         "`hf download --repo-type dataset nobody/rows`"],
    ),
}  # fmt: skip


# Those that import neither torch nor TRL
QUICK = ["a family without a classifier", "a model"]


@pytest.mark.parametrize("names", [QUICK, pytest.param(list(ASKED), marks=pytest.mark.slow)], ids=["quick", "all"])
def test_the_hub_is_asked_once(black_hole: BlackHole, tmp_path: Path, names: list[str]) -> None:
    """All in one process of its own, which asks once for them all."""
    asked = {name: ASKED[name] for name in names}
    env = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    env |= {"HF_ENDPOINT": black_hole.address, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    common = ["tracker=none", f"output_dir={tmp_path / 'run'}"]
    every = [[*words, *(common if "recipe=chat" not in words else common[:1])] for words, _ in asked.values()]
    command = [sys.executable, "-c", ASK_EACH, json.dumps(every)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    said = done.stderr.split("-----\n")[:-1]
    for (name, (_, parts)), text in zip(asked.items(), said, strict=True):
        assert text.endswith("exit status 2\n"), (name, text)
        for part in parts:
            assert any(either in text for either in part.split("|")), (name, part, text)
    assert black_hole.asked == 1
    assert not (tmp_path / "run").exists()


def test_what_an_answer_is(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any status is one; a closed port and a name that nobody has are none."""

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert hub.no_network() is None
    server.shutdown()
    thread.join()
    server.server_close()
    hub.no_network.cache_clear()
    assert hub.no_network() == f"{address}: connection refused"
    hub.no_network.cache_clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://nobody.invalid")
    assert hub.no_network() is not None
    hub.no_network.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.no_network() == "HF_HUB_OFFLINE=1 says so"


@pytest.mark.parametrize(
    ("words", "asks"),
    [([], False), (["model=gemma3_1b_it"], True), (["data=auto", "data.train_file=", "data.dataset_name=a/b"], True)],
)
def test_only_names_of_the_hub_ask_it(words: list[str], asks: bool) -> None:
    assert hub.asks_hub(compose_config("lora_sft", words)) is asks


def test_a_model_that_fits_is_not_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check as with the checkpoint at hand; a dry run goes on and says the estimate."""
    monkeypatch.setattr(capacity, "free_memory", lambda device, processes=1: 4.0)
    with pytest.raises(UserError, match=r"need about .* and 4\.0 GiB are free"):
        run_recipe(compose_config("lora_sft", ["model=gemma3_4b_it", *ROWS, "tracker=none"]))
    capacity.check_published(compose_config("lora_sft", ["model=gemma3_1b_it", *ROWS]))
    with pytest.raises(UserError, match="in float32 need about"):
        capacity.check_published(compose_config("export", ["model=gemma3_4b_it"]))
    capacity.check_published(compose_config("lora_sft", ["model.model_name_or_path=a-team/their-model", *ROWS]))
