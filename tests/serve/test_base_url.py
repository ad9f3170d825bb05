"""`recipe=evaluate model.base_url=…`: a server is asked as any client asks it; here a small one of the tests' own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from slow import slow_after

import gemma_tune
from gemma_tune.chat.answer_text import answer_text
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import DataConfig, ModelConfig
from gemma_tune.data.reading import read_tests
from gemma_tune.engines.api_models import models_at
from gemma_tune.engines.base import Dialogue
from gemma_tune.engines.served import ServedEngine, as_openai
from gemma_tune.errors import RunError, UserError
from gemma_tune.evals.samples import row_ids
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
CALL = {"name": "set_light", "arguments": '{"room": "hall", "on": true}'}

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Api:
    """An API that answers as it is told.

    Attributes:
        ids: The models that it says it has.
        answer: Status and JSON for a request; by default a call.
        key: The key that it wants.
        asked: The requests.
    """

    def __init__(self) -> None:
        self.ids, self.key, self.asked = ["small"], "", list[dict[str, Any]]()
        self.answer: Answer = lambda asked: (200, said("", [CALL], "tool_calls"))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler) -> None:
                status, found = (200, {"data": [{"id": name} for name in self.ids]})
                self.send(handler, (status, found) if handler.path == "/v1/models" else (404, {"detail": "Not Found"}))

            def do_POST(handler) -> None:
                asked = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                self.asked.append(asked)
                self.send(handler, self.answer(asked))

            def log_message(handler, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def send(self, handler: BaseHTTPRequestHandler, answer: tuple[int, Any]) -> None:
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            answer = 401, {"error": {"message": "Invalid API Key"}}
        body = json.dumps(answer[1]).encode()
        handler.send_response(answer[0])
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def said(content: str | None, calls: list[dict[str, str]] | None = None, reason: str = "stop", **more: Any) -> Any:
    message = {"role": "assistant", "content": content, **more}
    if calls:
        message["tool_calls"] = [{"id": "x", "type": "function", "function": call} for call in calls]
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    models_at.cache_clear()
    one = Api()
    yield one
    one.close()
    models_at.cache_clear()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


def ask(api: Api, tokenizer: Any, **more: Any) -> tuple[str, bool]:
    """The server's answer as an evaluator sees it: its text, and whether it stopped."""
    engine = ServedEngine(ModelConfig(base_url=api.url), tokenizer)
    ids = engine.replies([Dialogue([{"role": "user", "content": "Hi"}], **more)], 32, "x")[0]
    return answer_text(tokenizer, ids), bool(ids) and ids[-1] in engine.stops


def test_answers_as_the_model_would_have_written_them(api: Api, tokenizer: Any) -> None:
    assert ask(api, tokenizer) == ('{"name": "set_light", "parameters": {"room": "hall", "on": true}}', True)
    assert api.asked[-1] == {
        "model": "small", "temperature": 0, "max_tokens": 32, "messages": [{"role": "user", "content": "Hi"}],
    }  # fmt: skip
    api.answer = lambda asked: (200, said("One moment.", [CALL, CALL], "tool_calls"))
    text, stopped = ask(api, tokenizer, tools=[{"type": "function", "function": {"name": "set_light"}}])
    assert text.startswith('One moment.\n[{"name": "set_light"') and stopped
    assert api.asked[-1]["tools"][0]["function"]["name"] == "set_light"
    api.answer = lambda asked: (200, said(" Hello. ", reason="stop"))
    assert ask(api, tokenizer) == ("Hello.", True)
    api.answer = lambda asked: (200, said("Hello", reason="length"))
    assert ask(api, tokenizer) == ("Hello", False)
    api.answer = lambda asked: (200, said(None))
    assert ask(api, tokenizer) == ("", True)
    api.answer = lambda asked: (500, {"error": {"message": "The model produced output that does not match the format"}})
    assert ask(api, tokenizer) == ("", False)
    # What no model of this format writes is text, and so no right answer
    api.answer = lambda asked: (200, said("", [{"name": "set_light", "arguments": '{"room": '}], "tool_calls"))
    assert ask(api, tokenizer)[0] == '{"name": "set_light", "arguments": "{\\"room\\": "}'
    api.answer = lambda asked: (200, said("a <end_of_turn> b"))
    assert ask(api, tokenizer)[1]


def test_thinking(api: Api) -> None:
    """Asked for by Transformers' and vLLM's name of it, and found under any of the servers' names."""
    from forms_at_hand import tokenizer_of

    tokenizer = tokenizer_of("gemma4")
    api.answer = lambda asked: (200, said("Four.", reasoning="Two and two."))
    text, _ = ask(api, tokenizer, thinking=True)
    assert text.endswith("Four.") and api.asked[-1]["chat_template_kwargs"] == {"enable_thinking": True}


def test_a_conversation_as_a_client_sends_it() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    sent = as_openai(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "weight": 0, "tool_calls": [call, call]},
            {"role": "tool", "content": {"x": 1}}, {"role": "tool", "content": "two"},
        ]
    )  # fmt: skip
    assert "weight" not in sent[1]
    assert [c["function"]["arguments"] for c in sent[1]["tool_calls"]] == ['{"a": 1}'] * 2
    assert [m["tool_call_id"] for m in sent[2:]] == [c["id"] for c in sent[1]["tool_calls"]]
    assert sent[2]["content"] == '{"x": 1}'


@pytest.mark.parametrize(
    ("status", "body", "error", "found"),
    [
        (400, {"error": {"message": "the context is too long"}}, RunError, "refused .*: the context is too long"),
        (404, {"detail": "no such model"}, RunError, "refused .*: no such model"),
        (500, {"detail": "out of memory"}, RunError, "refused .*: out of memory"),
        (401, {"error": "key"}, UserError, "it wants a key; export OPENAI_API_KEY"),
        (200, {"x": 1}, RunError, "is no chat completion"),
        (200, {"choices": []}, RunError, "is no chat completion"),
    ],
)  # fmt: skip
def test_refused_requests(api: Api, tokenizer: Any, status: int, body: Any, error: Any, found: str) -> None:
    api.answer = lambda asked: (status, body)
    with pytest.raises(error, match=found):
        ask(api, tokenizer)


def test_which_model(api: Api, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read: nobody there, a key, another path, several models."""

    def composed(*words: str) -> Any:
        models_at.cache_clear()
        return compose_config("evaluate", [f"model.base_url={api.url}", "data=sample", *words])

    api.ids = ["a", "b"]
    with pytest.raises(UserError, match=r"it has 2 models: a, b; name one: model.served_name="):
        gemma_tune.run("evaluate", [f"model.base_url={api.url}", "data=sample", "dry_run=true"])
    with pytest.raises(UserError, match=r"model.served_name=c: .* has a, b"):
        ServedEngine(composed("model.served_name=c").model, tokenizer)
    assert ServedEngine(composed("model.served_name=b").model, tokenizer).name == "b"
    api.key = "secret"
    with pytest.raises(UserError, match="it wants a key; export OPENAI_API_KEY"):
        composed()
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    with pytest.raises(UserError, match="the key in OPENAI_API_KEY isn't its key") as caught:
        composed()
    assert "other" not in str(caught.value).replace("one that", "")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    composed()
    with pytest.raises(UserError, match=r"there is no such API .*; it usually ends with /v1"):
        compose_config("evaluate", [f"model.base_url={api.url.removesuffix('/v1')}", "data=sample"])
    api.close()
    with pytest.raises(UserError, match="nobody answers there"):
        composed()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["eval.evaluators=[held_out_loss,answers]", "data=sample"], "held_out_loss can't be measured at"),
        (["eval=kl", "eval.kl.reference=assets://tiny", "data=sample"], "kl can't be measured at model.base_url"),
        ([], r"eval.evaluators=\[answers\]: nothing would be measured.* choose data=sample for the bundled sample"),
        (["engine.vllm=vllm", "data=sample"], "engine.vllm and model.base_url both say what is asked"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(api: Api, words: list[str], found: str) -> None:
    with pytest.raises(UserError, match=found):
        compose_config("evaluate", [f"model.base_url={api.url}", *words])


@pytest.mark.parametrize("named", slow_after(1, [[], ["model=tiny"]]))
@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("127.0.0.1:8000", "write model.base_url=http://127.0.0.1:8000/v1."),
        ("localhost:8000/v1", "write model.base_url=http://localhost:8000/v1."),
        ("8000", "write model.base_url=http://127.0.0.1:8000/v1."),
        ("http:/x", "write model.base_url=http://x/v1."),
        ("https//x.org/api", "write model.base_url=https://x.org/api."),
        ("ftp://x/v1", "write model.base_url=http://x/v1."),
        ("http://x:8000/v1 ", "it holds blanks, or letters that no address has; write model.base_url=http://x:8000/v1."),
        ("http://x/ä", "it holds blanks, or letters that no address has; write one as http://127.0.0.1:8000/v1."),
        ("http://", "write one as http://127.0.0.1:8000/v1."),
        ("http://[::1", "its host or port is none; write one as"),
        ("http://x:one/v1", "its host or port is none; write one as"),
        ("http://x:99999/v1", "its host or port is none; write one as"),
        (f"http://{70 * 'a'}/v1", "its host or port is none; write one as"),
        ("http://x:8000/v1/chat/completions", "ends before /chat/completions; write model.base_url=http://x:8000/v1."),
        ("http://me:secret@x/v1", "write model.base_url=http://x/v1; a key goes into the environment: OPENAI_API_KEY"),
        ("http://x/v1?key=secret", "write model.base_url=http://x/v1; a key goes into the environment: OPENAI_API_KEY"),
        (str(ASSETS), "and is a path: a run or a model is named by model.model_name_or_path."),
    ],
)  # fmt: skip
def test_addresses(url: str, fix: str, named: list[str]) -> None:
    """An address that is none is refused before anybody is asked, whether or not a model is named beside it."""
    with pytest.raises(UserError) as caught:
        compose_config("evaluate", [f"model.base_url='{url}'", "data=sample", *named])
    assert str(caught.value).startswith("model.base_url=") and fix in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_address_beside_a_model() -> None:
    """One of those above, for `make test`."""
    with pytest.raises(UserError, match=r"write model.base_url=http://127.0.0.1:8000/v1\."):
        compose_config("evaluate", ["model.base_url=8000", "data=sample", "model=tiny"])


def test_only_an_evaluation_asks() -> None:
    with pytest.raises(UserError, match=r"model.base_url has no effect with recipe=chat"):
        compose_config("chat", ["model.base_url=http://127.0.0.1:8000/v1"])


def test_a_model_that_is_a_folder(api: Api) -> None:
    """vLLM names a model by its folder: its tokenizer, and its run's rows where it is a run's."""
    api.ids = [str(TINY)]
    cfg = compose_config("evaluate", [f"model.base_url={api.url}", "data=sample"])
    assert cfg.model.model_name_or_path == str(TINY)
    assert cfg.eval.evaluators == ["answers"]


def run_with_answers(folder: Path, rows: list[dict[str, Any]], before: str) -> Path:
    """A run folder as far as an evaluation reads it: its configuration, model and answers."""
    run = folder / "tuned"
    (run / "export" / "merged").mkdir(parents=True)
    for file in TINY.iterdir():
        (run / "export" / "merged" / file.name).symlink_to(file)
    for file in ("manifest.json", "result.json"):
        (run / file).write_text('{"gemma_tune": "0.1", "status": "finished"}', encoding="utf-8")
    test = folder / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stored = {
        "recipe": "lora_sft", "method": "sft", "seed": 1, "model": {"model_name_or_path": "assets://tiny"},
        "data": {"test_files": {"mine": str(test)}}, "train": {}, "eval": {"evaluators": ["held_out_loss", "answers"]},
    }  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    ids = row_ids(read_tests(DataConfig(test_files={"mine": str(test)}))["mine"])
    (run / "eval").mkdir()
    answers = [row["messages"][-1]["content"] for row in rows]
    trained = [{"id": i, "score": 1.0, "answer": answer} for i, answer in zip(ids, answers, strict=True)]
    for when, found in (("after", trained), ("before", [{**row, "answer": before} for row in trained])):
        content = json.dumps({"rows": {"mine_exact_match": found}})
        (run / "eval" / f"{when}.json").write_text(content, encoding="utf-8")
    return run


ROWS = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": q[::-1]}]} for q in ("ab", "cd")]


@pytest.mark.parametrize("tuned", [True, False])
def test_whose_answers(api: Api, folder: Path, tuned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The plain command on a run: its rows, without the evaluators that can't be asked; a served base is a failure."""
    run = run_with_answers(folder, ROWS, before="what?")
    api.answer = lambda asked: (200, said(asked["messages"][0]["content"][::-1] if tuned else "what?"))
    words = [f"model.base_url={api.url}", f"model.model_name_or_path={run}", "tracker=none"]
    result = gemma_tune.run("evaluate", words)
    out = capsys.readouterr().out
    assert result.metrics["served"] == {
        "rows": 2, "as_trained": 2 * tuned, "changed": 2, "changed_as_trained": 2 * tuned,
        "changed_as_before": 2 * (not tuned),
    }  # fmt: skip
    assert result.metrics["after"]["mine_exact_match"] == float(tuned)
    assert "held_out_loss" not in result.metrics["after"] and "Not asked, since a server gives answers" in out
    assert ("the base is served, not the tuned model" in result.failures.get("served model", "")) is not tuned
    assert ("Warning: the base is served" in out) is not tuned


def test_own_and_other_evaluators(api: Api, folder: Path) -> None:
    """Those of one's own that use `inputs.answers`, long contexts and rewards."""
    (folder / "mine.py").write_text(
        "def mine(engine, inputs):\n"
        "    answers = inputs.answers(engine, inputs.tests['mine'])\n"
        "    return {'mine': sum('a' in a.text for a in answers) / len(answers)}\n",
        encoding="utf-8",
    )
    test = folder / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    api.answer = lambda asked: (200, said(asked["messages"][0]["content"][::-1][:40]))
    words = [
        f"model.base_url={api.url}", "tracker=none", "data=auto", f"data.test_files.mine={test}",
        "eval.evaluators=[mine.py:mine,rewards,long_context]", "reward.functions.own=mine.py:own",
        "eval.long_context.kinds=[needle]", "eval.long_context.lengths=[512]", "eval.long_context.num_samples=2",
    ]  # fmt: skip
    (folder / "mine.py").open("a").write("def own(completions, **_):\n    return [1.0 for _ in completions]\n")
    found = gemma_tune.run("evaluate", words)
    assert not found.failures
    figures = found.metrics["after"]
    assert figures["mine"] == 0.5 and figures["mine_own"] == 1.0 and figures["needle_512_accuracy"] >= 0
