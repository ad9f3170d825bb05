"""The client side of vLLM: what is asked of a server that answers in its form, and how it is started."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.chat import Rendered
from gemma_tune.config import EngineConfig
from gemma_tune.engines.json_client import JsonClient
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.engines.vllm import VllmEngine
from gemma_tune.engines.vllm_server import VllmOptions, find_vllm, unservable, vllm_command
from gemma_tune.errors import UserError
from gemma_tune.models.source import Source
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
ROWS = [[2, 100, 200, 300, 400], [2, 5, 450, 272, 1245, 1501, 1514]]
STOPS = (1, 6)


class Stub:
    """A server in vLLM's form around a model of Transformers; it keeps what it was asked."""

    model = "model"

    def __init__(self, model: Any) -> None:
        self.net, self.asked = model, list[dict[str, Any]]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.answer({"data": [{"id": "model", "max_model_len": 64}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                self.answer({"choices": [outer.complete(**body)]})

            def answer(self, body: dict[str, Any]) -> None:
                text = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._client = JsonClient(f"http://127.0.0.1:{self._server.server_port}", 60.0)
        self.get, self.post = self._client.get, self._client.post

    def close(self) -> None:
        self._server.shutdown()

    def complete(self, prompt: list[int], max_tokens: int, prompt_logprobs: int | None = None, **_: Any) -> Any:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(max_tokens):
                log_probs = self.net(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
                ids.append(int(log_probs[-1].argmax()))
                if ids[-1] in STOPS:
                    break
        if prompt_logprobs is None:
            return {"token_ids": ids[len(prompt) :]}
        # The token itself, and the best ones; nothing at the first place
        found: list[dict[str, Any] | None] = [None]
        for token, row in zip(prompt[1:], log_probs, strict=False):
            k = len(row) if prompt_logprobs < 0 else prompt_logprobs
            chosen = {int(i) for i in row.topk(k).indices} | {token}
            found.append({str(i): {"logprob": float(row[i]), "rank": 1} for i in chosen})
        return {"token_ids": ids[len(prompt) :], "prompt_logprobs": found}


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[VllmEngine, TransformersEngine, Stub]]:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
        AutoTokenizer.from_pretrained(TINY),
    )
    model.generation_config.eos_token_id = list(STOPS)
    stub = Stub(model.eval())
    with VllmEngine(stub, tokenizer, STOPS, slots=2) as engine:  # type: ignore[arg-type]
        yield engine, TransformersEngine(model, tokenizer), stub


def test_computes_what_transformers_does(engines: tuple[VllmEngine, TransformersEngine, Stub]) -> None:
    engine, same, stub = engines
    assert engine.max_length == 63
    rows = [Rendered(ids, [-100, -100, *ids[2:]]) for ids in ROWS]
    assert engine.losses(rows, "") == pytest.approx(same.losses(rows, ""), rel=1e-5)
    for a, b in zip(engine.log_probs(ROWS, ""), same.log_probs(ROWS, ""), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for row, top in zip(same.log_probs(ROWS, ""), engine.top_log_probs(ROWS, 5, ""), strict=True):
        best = row.topk(5)
        torch.testing.assert_close(top.log_probs, best.values, atol=1e-5, rtol=0)
        assert torch.equal(top.ids, best.indices)
    assert engine.answers(ROWS, 6, "") == same.answers(ROWS, 6, "")
    # Greedy, whatever the model's own settings are, and without a second <bos>
    keys = ("temperature", "top_p", "top_k", "repetition_penalty", "add_special_tokens", "return_token_ids")
    assert [stub.asked[-1][key] for key in keys] == [0.0, 1.0, 0, 1.0, False, True]


def test_a_long_prompt_leaves_room_for_fewer_tokens(engines: tuple[VllmEngine, TransformersEngine, Stub]) -> None:
    engine, _, stub = engines
    engine.answers([[2] * 60], 40, "")
    assert stub.asked[-1]["max_tokens"] == 4


def test_command(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config: dict[str, Any] = {"r": 12, "rank_pattern": {"q_proj": 20}, "base_model_name_or_path": "b"}
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    options = VllmOptions(max_length=99, tool_parser="functiongemma", arguments=["--x"])
    words = vllm_command(Path("/v"), Source("base", "v1", adapter, str(adapter)), "tuned", options, "::1", 8000)
    assert words[:3] == ["/v", "serve", "base"] and words[-1] == "--x"
    pairs = dict(pairwise(words))
    assert pairs["--revision"] == "v1" and pairs["--tokenizer"] == str(adapter)
    assert pairs["--served-model-name"] == "base"  # the adapter's name is the adapter's alone
    assert pairs["--lora-modules"] == f"tuned={adapter}" and pairs["--max-lora-rank"] == "32"
    assert pairs["--tool-call-parser"] == "functiongemma" and pairs["--max-model-len"] == "99"
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 1000}), encoding="utf-8")
    with pytest.raises(UserError, match="rank 512 at most, and its rank is 1000"):
        vllm_command(Path("/v"), Source("base", None, adapter, "base"), "tuned", options, "127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("key", "said"),
    [("use_dora", "DoRA"), ("trainable_token_indices", "rows of the embedding"), ("modules_to_save", "")],
)
def test_adapters_that_vllm_does_not_serve(tmp_path: Path, key: str, said: str) -> None:
    config = {"r": 8, "base_model_name_or_path": "b", key: {"embed_tokens": [5]}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    why = unservable(Source("b", None, tmp_path, "b"))
    assert why and said in why and "export/merged" in why
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, key: None}), encoding="utf-8")
    assert unservable(Source("b", None, tmp_path, "b")) is None
    (tmp_path / "towers.safetensors").touch()  # vLLM would serve the adapter with the base's towers
    assert "towers that were trained with it" in str(unservable(Source("b", None, tmp_path, "b")))


def test_which_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    file = tmp_path / ".venv-vllm" / "bin" / "vllm"
    file.parent.mkdir(parents=True)
    file.write_text("#!/bin/sh\n")
    with pytest.raises(UserError, match="no program; name the `vllm` command"):
        find_vllm(EngineConfig(vllm=str(file)))
    file.chmod(0o755)
    assert find_vllm(EngineConfig(vllm=str(file))) == find_vllm(EngineConfig(vllm=".venv-vllm")) == file
    assert find_vllm(EngineConfig()) is None and find_vllm(EngineConfig(), look=True) == file
    with pytest.raises(UserError, match="no program"):
        find_vllm(EngineConfig(vllm="elsewhere"))
