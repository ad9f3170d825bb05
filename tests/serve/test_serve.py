"""`recipe=serve`: what is served by what, who may ask, and answers to the `openai` client."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from short_runs import short_run
from transformers import AutoModelForCausalLM, AutoTokenizer

import gemma_tune
from gemma_tune.chat import form_of
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import DataConfig, EngineConfig, ModelConfig
from gemma_tune.data.reading import read_tests
from gemma_tune.engines.json_client import JsonClient
from gemma_tune.engines.llama_cpp import LlamaCppEngine
from gemma_tune.engines.served import ServedEngine, same_answer_text
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.engines.vllm import VllmEngine
from gemma_tune.engines.vllm_server import find_vllm
from gemma_tune.errors import RunError, UserError
from gemma_tune.evals.samples import row_ids, sample_answers
from gemma_tune.export.gguf import export
from gemma_tune.models.gguf_header import lacks_chat_template
from gemma_tune.models.load import set_stop_tokens, stop_token_ids
from gemma_tune.run.paths import ASSETS
from gemma_tune.serve import choice, words
from gemma_tune.serve.choice import chosen
from gemma_tune.serve.server import check_port, started

TINY = ASSETS / "tiny"
KEY = "a-key-that-nobody-may-see"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a GGUF file, without anything beside it."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install 'gemma_tune[gguf]'")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
        AutoTokenizer.from_pretrained(TINY),
    )
    weights = {name: p.detach() for name, p in model.named_parameters()}
    file = tmp_path_factory.mktemp("served") / "small one.gguf"
    return export(weights, model.config, tokenizer, model.generation_config, torch.float32, file, name="x")


def client(address: str, key: str = "none") -> Any:
    openai = pytest.importorskip("openai", reason="needs pip install 'gemma_tune[serving]'")
    return openai.OpenAI(base_url=words.client_address(address), api_key=key, max_retries=0)


def tool_rows(number: int) -> list[dict[str, Any]]:
    lines = (ASSETS / "sample" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:number]]


def asked(ai: Any, model: str, **more: Any) -> Any:
    return ai.chat.completions.create(model=model, temperature=0, max_tokens=48, **more)


def streamed(chunks: Any) -> tuple[str, list[tuple[str, str]], str]:
    """Text, calls and reason of a stream."""
    text, calls, reason = "", dict[int, list[str]](), ""
    for chunk in chunks:
        for choice_ in chunk.choices:
            text, reason = text + (choice_.delta.content or ""), choice_.finish_reason or reason
            for call in choice_.delta.tool_calls or []:
                said = calls.setdefault(call.index, ["", ""])
                said[0] += call.function.name or ""
                said[1] += call.function.arguments or ""
    return text, [(name, arguments) for name, arguments in calls.values()], reason


def whole(answer: Any) -> tuple[str, list[tuple[str, str]], str]:
    message = answer.choices[0].message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
    return message.content or "", calls, answer.choices[0].finish_reason


def check_answers(ai: Any, model: str, rows: int = 3) -> None:
    """Chat with tools, whole and streamed, and a completion."""
    assert [one.id for one in ai.models.list()] == [model]
    for row in tool_rows(rows):
        question = {"messages": row["messages"][:1], "tools": row["tools"]}
        found = whole(asked(ai, model, **question))
        assert streamed(asked(ai, model, stream=True, **question)) == found
        assert found[2] in ("stop", "tool_calls", "length")
    assert ai.completions.create(model=model, prompt="The cat sat", max_tokens=4, temperature=0).choices[0].text


def check_same_rows(url: str, engine: Any, rows: int = 8) -> None:
    """`recipe=evaluate model.base_url=…` has the answers that `recipe=evaluate` has by the same engine."""
    served = ServedEngine(ModelConfig(base_url=words.client_address(url)), engine.tokenizer)
    records = read_tests(DataConfig(test_files={"test": str(ASSETS / "sample" / "test.jsonl")}))["test"][:rows]
    by_engine, by_server = (sample_answers(one, records, 32) for one in (engine, served))
    form = form_of(engine.tokenizer)
    assert all(same_answer_text(a["answer"], b["answer"], form) for a, b in zip(by_engine, by_server, strict=True))
    assert [row["stopped"] for row in by_engine] == [row["stopped"] for row in by_server]


@pytest.mark.slow
def test_merged_weights_in_transformers() -> None:
    """One model alone, whatever a client names, also by the routes that are Transformers' own."""
    pytest.importorskip("fastapi", reason="needs pip install 'gemma_tune[serving]'")
    cfg = compose_config("serve", ["serve.engine=transformers", "serve.port=0", "model.dtype=float32"])
    served = chosen(cfg)
    assert (served.engine, served.name) == ("transformers", "tiny")
    with started(served, cfg) as server:
        ai = client(server.url)
        check_answers(ai, "tiny", rows=1)
        tokenizer = AutoTokenizer.from_pretrained(TINY)
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        set_stop_tokens(model, tokenizer)
        check_same_rows(server.url, TransformersEngine(model, tokenizer, batch_size=1), rows=4)
        import openai

        with pytest.raises(openai.BadRequestError):
            asked(ai, str(TINY), messages=[{"role": "user", "content": "Hi"}])
        api = JsonClient(server.url, 60)
        with contextlib.suppress(RunError):  # its events are no JSON
            api.post("/load_model", model=str(TINY))
        assert api.post("/reset") == {"status": "ok"}
        assert asked(ai, "tiny", messages=[{"role": "user", "content": "Hi"}])


@pytest.mark.vllm
def test_merged_weights_in_vllm() -> None:
    """Its parser finds calls by the tokenizer that it is given."""
    vllm = find_vllm(EngineConfig(vllm=os.environ.get("GEMMA_TUNE_VLLM")), look=True)
    if vllm is None:
        pytest.skip("there is no vLLM: make setup-vllm, or GEMMA_TUNE_VLLM=path/to/vllm")
    cfg = compose_config("serve", [f"engine.vllm={vllm}", "serve.port=0", "model.dtype=float32"])
    served = chosen(cfg)
    assert (served.engine, served.name) == ("vllm", "tiny")
    with started(served, cfg) as server:
        check_answers(client(server.url), "tiny")
        tokenizer = AutoTokenizer.from_pretrained(TINY)
        check_same_rows(server.url, VllmEngine(server, tokenizer, stop_token_ids(tokenizer)))


def test_a_gguf_file(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key: nobody asks without it, and it is in no list of processes and nothing printed."""
    cfg = compose_config("serve", [f"model.model_name_or_path='{gguf}'", "serve.port=0", f"serve.api_key={KEY}"])
    served = chosen(cfg)
    assert (served.engine, served.name, served.gguf) == ("llama_cpp", "small-one", gguf)
    with started(served, cfg) as server:
        check_answers(client(server.url, KEY), "small-one")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        tokenizer = AutoTokenizer.from_pretrained(TINY)
        with LlamaCppEngine(gguf, tokenizer, stop_token_ids(tokenizer), exact=True) as engine:
            check_same_rows(server.url, engine)
        import openai

        with pytest.raises(openai.AuthenticationError):
            asked(client(server.url), "small-one", messages=[{"role": "user", "content": "Hi"}])
        child = psutil.Process(server.pid)
        assert KEY not in " ".join([*child.cmdline(), *child.environ().values()])
        said = [words.what_is_served(served, server.url), *words.how_to_ask(served, cfg.serve, server.url)]
        assert KEY not in " ".join(said)
        assert "small one.gguf by llama.cpp at http://127.0.0.1:" in said[0]
        os.kill(server.pid, signal.SIGKILL)
        assert "small one.gguf: llama.cpp has died (exit status -9)" in str(server.wait())


def test_a_gguf_file_without_a_chat_template(gguf: Path, tmp_path: Path) -> None:
    """llama.cpp would write ChatML: refused before anything is loaded; a template that is named is the one it takes."""
    file = tmp_path / "bare.gguf"
    file.write_bytes(gguf.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX", 1))
    words_ = [f"model.model_name_or_path={file}", "serve.port=0", "dry_run=true"]
    with pytest.raises(UserError, match=r"holds no chat template.*as ChatML.*model\.chat_template=gemma3"):
        gemma_tune.run("serve", words_)
    assert not lacks_chat_template(gguf) and lacks_chat_template(file)
    file.write_bytes(file.read_bytes()[:5_000])
    assert not lacks_chat_template(file)  # it can't be told; llama.cpp says what is wrong with such a file
    (tmp_path / "mine.jinja").write_text("{{ bos_token }}<start_of_turn>{{ messages[0].content }}!", encoding="utf-8")
    named = [f"model.model_name_or_path='{gguf}'", "serve.port=0", f"model.chat_template={tmp_path / 'mine.jinja'}"]
    cfg = compose_config("serve", named)
    with started(chosen(cfg), cfg) as server:
        found = JsonClient(server.url, 60).post("/apply-template", messages=[{"role": "user", "content": "Hi"}])
    assert found["prompt"] == "<start_of_turn>Hi!"


@pytest.mark.slow
def test_tuned_merged_weights_in_transformers(tmp_path: Path) -> None:
    """The `openai` client has as many right answers of the test rows as `recipe=evaluate` on the same engine."""
    pytest.importorskip("fastapi", reason="needs pip install 'gemma_tune[serving]'")
    run, measured = tmp_path / "tuned", tmp_path / "measured"
    short_run(
        "lora_sft", run, "model.dtype=bfloat16", "train.per_device_train_batch_size=8", "data.max_train_samples=null",
        "train.learning_rate=2e-3", "eval.evaluators=[]", "eval.num_samples=0", steps=50,
    )  # fmt: skip
    merged, most = f"model.model_name_or_path={run / 'export' / 'merged'}", 64
    test = f"data.test_files.test={ASSETS / 'sample' / 'test.jsonl'}"
    asked_of_it = [merged, "data=auto", test, "eval.evaluators=[answers]", "eval.max_samples=40", "tracker=none"]
    result = gemma_tune.run("evaluate", [*asked_of_it, f"eval.max_new_tokens={most}", f"output_dir={measured}"])
    stored = json.loads((measured / "eval" / "after.json").read_text("utf-8"))["rows"]["test_exact_match"]
    rows = tool_rows(1000)
    records = read_tests(DataConfig(test_files={"test": str(ASSETS / "sample" / "test.jsonl")}))["test"]
    by_id = dict(zip(row_ids(records), rows, strict=True))
    cfg = compose_config("serve", [merged, "serve.engine=transformers", "serve.port=0"])
    with started(served := chosen(cfg), cfg) as server:
        ai = client(server.url)

        def ask(row: dict[str, Any], **more: Any) -> Any:
            given = {"messages": row["messages"][:1]} | ({"tools": row["tools"]} if row.get("tools") else {})
            return ai.chat.completions.create(model=served.name, temperature=0, max_tokens=most, **given, **more)

        answers = {one["id"]: whole(ask(by_id[one["id"]])) for one in stored}
        right = {name: is_right(by_id[name]["messages"][1], answer) for name, answer in answers.items()}
        assert right == {one["id"]: one["score"] == 1.0 for one in stored} and len(right) == 40
        share = sum(right.values()) / len(right)
        assert share == pytest.approx(result.metrics["after"]["test_exact_match"]) and 0.1 < share < 1.0
        called = next(name for name, answer in answers.items() if answer[1] and right[name])
        assert answers[called][2] == "tool_calls"
        for name in (called, *[n for n, answer in answers.items() if not answer[1]][:1]):
            assert streamed(ask(by_id[name], stream=True)) == answers[name]
    calls = sum(bool(answer[1]) for answer in answers.values())
    print(f"served and evaluated: {share:.1%} of {len(right)} rows right, {calls} answered with calls")


def is_right(wanted: dict[str, Any], answer: tuple[str, list[tuple[str, str]], str]) -> bool:
    """Exact match as a client sees it: the same words, and the same calls as data."""
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in wanted.get("tool_calls") or []]
    try:
        found = [(name, json.loads(arguments)) for name, arguments in answer[1]]
    except ValueError:  # a call that the model has not written as its format has it
        return False
    return answer[2] != "length" and answer[0].strip() == wanted["content"].strip() and found == calls


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


def test_a_port_in_use(taken: int) -> None:
    cfg = compose_config("serve", [f"serve.port={taken}"])
    with pytest.raises(
        UserError, match=rf"serve.port={taken}: another program listens there already; serve.port=\d+ is"
    ):
        check_port(cfg.serve)
    cfg.serve.host = "no.such.host.invalid"
    with pytest.raises(UserError, match=r"serve.host=no.such.host.invalid: this is no address of this machine"):
        check_port(cfg.serve)
    cfg.serve.host = "192.0.2.1"  # of no machine (RFC 5737)
    with pytest.raises(UserError, match=r"nothing can listen there"):
        check_port(cfg.serve)


@pytest.mark.parametrize(
    ("words_", "said"),
    [
        (["serve.host=0.0.0.0"], r"serve.host=0.0.0.0: others could ask the model there, and serve.api_key is not set"),
        (["serve.api_key=''"], "serve.api_key is empty"),
        (["serve.api_key=a,b"], "one text of at most 1,000"),
        (["serve.api_key='a b c'"], "its value isn't shown"),
        (["serve.name='a b'"], "a model's id has letters"),
        (["serve.port=65536"], "serve.port must be at most 65535"),
        (["serve.engine=ollama"], "serve.engine must be one of auto, llama_cpp, vllm, transformers"),
        (["data.train_file=x.jsonl"], "data.train_file has no effect with recipe=serve"),
        (["train.max_length=64"], "train.max_length has no effect with recipe=serve"),
        (["chat.prompt=Hi"], "chat.prompt has no effect with recipe=serve; use recipe=chat"),
        (["model.model_name_or_path=runs/none"], "runs/none"),
    ],
)  # fmt: skip
def test_refused_while_composing(words_: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_config("serve", words_)


def test_a_secret_is_not_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a dry run, in messages, and where another recipe is given it."""
    monkeypatch.setenv("SERVE_API_KEY", KEY)
    monkeypatch.setattr(choice, "_by_transformers", lambda *_: choice.Served("llama_cpp", "x"))
    gemma_tune.run("serve", ["serve.api_key=${oc.env:SERVE_API_KEY}", "serve.port=0", "dry_run=true"])
    assert KEY not in (found := capsys.readouterr().out) and "api_key: (not shown)" in found
    for words_ in (
        [f"serve.api_key={KEY} x"], [f"serve.api_key=[{KEY}]"], [f"serve.api_key={{a: {KEY}}}"],
        [f"serve.api_key={KEY * 60}"], [f"serve.api_key={KEY},{KEY}"],
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            compose_config("serve", words_)
        assert KEY not in str(caught.value), words_
    with pytest.raises(UserError) as caught:
        compose_config("chat", [f"serve.api_key={KEY}"])
    assert KEY not in str(caught.value)


def test_engines_that_cannot(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is refused with a way that can."""
    for words_, said in (
        ([f"model.model_name_or_path='{gguf}'", "serve.engine=transformers"], "is a GGUF file, which llama.cpp serves"),
        (["serve.engine=llama_cpp"], "holds no GGUF file; make one: python -m gemma_tune recipe=export"),
        (["serve.engine=transformers", f"serve.api_key={KEY}"], "knows no keys"),
        (["serve.engine=transformers", "serve.max_length=64"], "has no such limit"),
    ):
        with pytest.raises(UserError, match=said):
            chosen(compose_config("serve", words_))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs fastapi.*pip install 'gemma_tune\[serving\]'"):
        chosen(compose_config("serve", ["serve.engine=transformers"]))


def test_a_run_with_gguf_files_alone(gguf: Path, tmp_path: Path) -> None:
    """The one that is there; which one, where there are several; a GGUF LoRA is no model."""
    run = tmp_path / "mine"
    (run / "export" / "gguf").mkdir(parents=True)
    for file in ("manifest.json", "result.json"):
        (run / file).write_text('{"gemma_tune": "0.1", "status": "finished"}', encoding="utf-8")
    (run / "config.yaml").write_text(
        "recipe: export\nmethod: export\nseed: 1\nmodel: {}\ndata: {}\ntrain: {}\n", encoding="utf-8"
    )
    shutil.copy(gguf, run / "export" / "gguf" / "a.gguf")
    (run / "export" / "gguf_lora").mkdir()
    (run / "export" / "gguf_lora" / "lora.gguf").write_bytes(b"GGUF")
    cfg = compose_config("serve", [f"model.model_name_or_path={run}"])
    served = chosen(cfg)
    assert (served.engine, served.name, served.gguf) == ("llama_cpp", "mine", run / "export" / "gguf" / "a.gguf")
    shutil.copy(gguf, run / "export" / "gguf" / "b.gguf")
    with pytest.raises(UserError, match=r"it holds 2 GGUF files; name .*a.gguf or .*b.gguf"):
        chosen(cfg)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_ends(gguf: Path, number: signal.Signals, status: int) -> None:
    """Ctrl-C is the way to end it; the server ends with the command."""
    command = [sys.executable, "-m", "gemma_tune", "recipe=serve", f"model.model_name_or_path='{gguf}'", "serve.port=0"]
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert begun.stdout
    first = begun.stdout.readline()
    assert first.startswith(f"Serving {gguf} by llama.cpp at http://127.0.0.1:")
    while "Ctrl-C" not in begun.stdout.readline():
        pass
    children = psutil.Process(begun.pid).children(recursive=True)
    assert len(children) == 1
    begun.send_signal(number)
    _, said = begun.communicate(timeout=30)
    assert begun.returncode == status, said
    assert "Traceback" not in said
    assert not children[0].is_running()
