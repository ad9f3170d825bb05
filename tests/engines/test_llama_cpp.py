"""llama.cpp on our GGUF files, against plain Transformers: probabilities, tokens, chats, and what goes wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from gemma_tune.chat import render_chat, render_prompt
from gemma_tune.engines.llama_cpp import GREEDY, EngineUnavailable, LlamaCppEngine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.errors import RunError
from gemma_tune.evals.kl import kl_and_agreement
from gemma_tune.export.gguf import export
from gemma_tune.quant.plan import plan_of
from gemma_tune.run.paths import ASSETS

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install 'gemma_tune[gguf]'")

TINY = ASSETS / "tiny"
TEXTS = [
    "The cat sat on the mat, and the dog did not.\nThen they went home; it was late.",
    "Tabs\tand\t\ttabs,  two   three    spaces \n\n\n and line ends\r\n, \u00a0 no-break.",
    "def f(x: int) -> dict[str, list[int]]:\n    return {'a': [x**2 for x in range(10)]}  # {\"b\": 1}\n",
    "Ελληνικά Русский العربية עברית हिन्दी ไทย 한국어 日本語テキスト 中文 Қазақша Tiếng Việt ქართული",
    "😀 👨‍👩‍👧‍👦 🏳️‍🌈 e\u0301 𝒳 \u200d \ufeff €½²",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<eos> <pad><unk> <0x0A> <end_of_turn", "", " ",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def ours(tokenizer: Any) -> TransformersEngine:
    return TransformersEngine(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), tokenizer)


def write(file: Path, model: Any, tokenizer: Any) -> Path:
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return export(weights, model.config, tokenizer, model.generation_config, torch.float32, file, name="x")


@pytest.fixture(scope="module")
def file(ours: TransformersEngine, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("llama") / "tiny.gguf", ours.model, tokenizer)


@pytest.fixture(scope="module")
def llama(file: Path, ours: TransformersEngine, tokenizer: Any) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(file, tokenizer, ours.stops, max_length=2048, exact=True, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    lines = (ASSETS / "sample" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:12]]


def test_probabilities(llama: LlamaCppEngine, ours: TransformersEngine, tokenizer: Any) -> None:
    """Every token of a small vocabulary; the best one at every position, beyond the sliding window, too."""
    rows = [tokenizer(text).input_ids for text in TEXTS[:3]]
    found = list(llama.log_probs(rows, "llama.cpp"))
    pairs = zip(ours.log_probs(rows, "ours"), found, strict=True)
    kl, same = (torch.cat(x) for x in zip(*(kl_and_agreement(*pair) for pair in pairs), strict=True))
    assert kl.mean() < 1e-6 and same.all() and len(kl) > 100
    long = tokenizer(" ".join(TEXTS[:4])).input_ids[:400]
    assert len(long) > ours.model.config.sliding_window + 64
    (best,), (reference,) = llama.top_log_probs([long], 8, "llama.cpp"), ours.log_probs([long], "ours")
    assert torch.equal(best.ids[:, 0], reference.argmax(-1))
    torch.testing.assert_close(best.log_probs, reference.gather(1, best.ids), atol=0.01, rtol=0)


def test_top_tokens_of_pieces(file: Path, llama: LlamaCppEngine, ours: TransformersEngine, tokenizer: Any) -> None:
    """Three slots take pieces of two rows; put together they are what one slot gives for the whole rows."""
    rows = [tokenizer(text).input_ids for text in (TEXTS[0], TEXTS[2])] + [[2]]
    with LlamaCppEngine(file, tokenizer, ours.stops, max_length=128, exact=True, slots=3, threads=1) as engine:
        found = list(engine.top_log_probs(rows, 4, "pieces"))
    for row, pieces, whole in zip(rows, found, llama.top_log_probs(rows, 4, "whole"), strict=True):
        assert pieces.ids.shape == (len(row), 4) and torch.equal(pieces.ids[:, 0], whole.ids[:, 0])
        # llama.cpp itself is off by up to 4e-3 here: it looks GELU up in a table of float16
        torch.testing.assert_close(pieces.log_probs, whole.log_probs, atol=2e-3, rtol=0)


def test_an_answer_while_it_is_written(llama: LlamaCppEngine, ours: TransformersEngine, tokenizer: Any) -> None:
    """The ids of the whole answer, its end included; characters of several tokens; whoever stops early frees it."""
    chat = [{"role": "user", "content": "What is 12 plus 5?"}]
    prompt = render_prompt(tokenizer, chat)
    whole = ours.answers([prompt], 24, "")[0]
    assert list(llama.written(prompt, 24, GREEDY)) == whole and whole[-1] in llama.stops
    said = "é😀 日本!"
    ids = list(llama.written(prompt, 64, {**GREEDY, "grammar": f'root ::= "{said}"'}))
    assert tokenizer.decode(ids, skip_special_tokens=True) == said and len(ids) > len(said) + 4
    asked = {"temperature": 100.0, "top_k": 3, "samplers": ["temperature", "top_k"]}
    drawn = [list(llama.written(prompt, 6, {**asked, "seed": seed})) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len({tuple(ids) for ids in drawn}) > 1
    early = llama.written(prompt, 1000, {**GREEDY, "ignore_eos": True})
    assert next(early) == whole[0]
    early.close()
    assert llama.answers([prompt], 24, "") == [whole]


def random_model(**values: Any) -> Any:
    """A small model of another shape, whose attention is far from uniform."""
    config = Gemma3TextConfig(
        vocab_size=1536, hidden_size=64, intermediate_size=96, head_dim=32, query_pre_attn_scalar=32,
        num_hidden_layers=6, max_position_embeddings=512, **values,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if "norm" in name else 0.1 if "embed" in name else 1.5 * p.shape[-1] ** -0.5
            p.normal_(0, scale)
    model.generation_config.eos_token_id = [1, 6]
    return model


@pytest.mark.parametrize(
    "values",
    [
        {
            "num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 40,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        {
            "num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 64, "tie_word_embeddings": False,
            "final_logit_softcapping": 4.0, "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        },
    ],
    ids=["windows and rotary scaling", "softcap and a head of its own"],
)  # fmt: skip
def test_other_shapes(tmp_path: Path, tokenizer: Any, values: dict[str, Any]) -> None:
    """What the metadata says of attention, rotary embedding and head, llama.cpp computes as Transformers does."""
    model = random_model(**values)
    row = torch.randint(20, 1500, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    file = write(tmp_path / "x.gguf", model, tokenizer)
    with LlamaCppEngine(file, tokenizer, [1], max_length=256, exact=True, threads=1) as engine:
        (found,) = engine.likelihoods([row], [120], "llama.cpp")
    (reference,) = TransformersEngine(model, tokenizer).log_probs([row], "ours")
    wanted = reference[119:-1].gather(1, torch.tensor(row[120:]).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found[:, 0], wanted, atol=0.01, rtol=0)


def test_losses(llama: LlamaCppEngine, ours: TransformersEngine, tokenizer: Any, records: list[Any]) -> None:
    rows = [render_chat(tokenizer, r["messages"], r.get("tools")) for r in records[:4]]
    assert llama.losses(rows, "llama.cpp") == pytest.approx(ours.losses(rows, "ours"), abs=0.01)


def test_parts_of_characters(llama: LlamaCppEngine, ours: TransformersEngine, tokenizer: Any) -> None:
    """llama.cpp gives no probabilities with a token that leaves a character unfinished."""
    row = tokenizer(TEXTS[4]).input_ids[:40]
    leads = [i for i, text in enumerate(tokenizer.convert_ids_to_tokens(row)) if text in ("<0xF0>", "<0xE2>")]
    (found,), (reference,) = llama.likelihoods([row], [1], "llama.cpp"), ours.log_probs([row], "ours")
    wanted = reference[:-1].gather(1, torch.tensor(row[1:]).unsqueeze(1)).squeeze(1)
    assert len(leads) > 3
    torch.testing.assert_close(found[:, 0], wanted, atol=0.01, rtol=0)
    assert torch.equal(found[:, 1].bool(), reference[:-1].argmax(-1) == torch.tensor(row[1:]))


def test_token_ids(llama: LlamaCppEngine, tokenizer: Any) -> None:
    """The same ids as Transformers', on texts of many scripts and on words and special tokens put together."""
    rng = random.Random(0)
    words = [*(t.replace("▁", " ") for t in tokenizer.get_vocab()), "\n\n", "   ", "\t", "é", "漢"]
    texts = TEXTS + ["".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(400)]
    differ = [text for text in texts if llama.token_ids(text) != tokenizer(text).input_ids]
    assert not differ


def test_chats(llama: LlamaCppEngine, ours: TransformersEngine, tokenizer: Any, records: list[Any]) -> None:
    """The file's template writes what ours writes, and answers are the same, stop token included.

    Many prompts begin alike: what is kept of one for the next must be what would be computed anew.
    """
    texts, prompts = [], []
    for record in records:
        messages, tools = record["messages"][:1], record.get("tools")
        texts.append(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True))
        assert "<bos>" + llama.prompt_of(messages, tools) == texts[-1]
        prompts.append(tokenizer(texts[-1], add_special_tokens=False).input_ids)
    assert llama.prompt_of([{"role": "system", "content": "S"}, {"role": "user", "content": " hi\n"}]) == (
        "<start_of_turn>user\nS\n\nhi<end_of_turn>\n<start_of_turn>model\n"
    )
    found = llama.answers(prompts, 24, "llama.cpp")
    assert found == ours.answers(prompts, 24, "ours")
    assert any(answer[-1] in ours.stops for answer in found)


@pytest.mark.parametrize("stop", [1, 6])
def test_it_stops_at_each_stop_token(llama: LlamaCppEngine, stop: int) -> None:
    """`<eos>` and `<end_of_turn>` end an answer of the server itself, not only what we cut off."""
    asked = {"prompt": [2, 5, 100], "n_predict": 9, "return_tokens": True, "logit_bias": [[stop, 1e5]]}
    found = llama._server.post("/completion", **asked)
    assert (found["tokens"], found["stop_type"]) == ([stop], "eos")


def test_rows_at_once(file: Path, ours: TransformersEngine, tokenizer: Any) -> None:
    """With several slots, each row gets its own answer, in the rows' order."""
    rows = [tokenizer(text).input_ids[: 4 + 3 * i] for i, text in enumerate(TEXTS[:5])]
    with LlamaCppEngine(file, tokenizer, ours.stops, max_length=64, exact=True, slots=3, threads=1) as engine:
        for best, reference in zip(engine.top_log_probs(rows, 1, "llama.cpp"), ours.log_probs(rows, ""), strict=True):
            assert torch.equal(best.ids[:, 0], reference.argmax(-1))


def test_the_quantized_file(tmp_path: Path, ours: TransformersEngine, tokenizer: Any) -> None:
    """Blocks of 4 and 8 bits are read as they are meant: no gross errors beside the model with the decoded weights."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    plan = plan_of(model, "q4_0", "q8_0")
    codes = {n: plan.grids[n].encode(p) if n in plan.grids else p.detach() for n, p in model.named_parameters()}
    with torch.no_grad():
        for name, grid in plan.grids.items():
            model.get_parameter(name).copy_(grid.decode(codes[name]))
    path = export(codes, model.config, tokenizer, model.generation_config, plan, tmp_path / "q.gguf", name="q")
    rows = [tokenizer(TEXTS[0]).input_ids]
    with LlamaCppEngine(path, tokenizer, ours.stops, max_length=64, threads=1) as engine:
        (found,) = engine.log_probs(rows, "llama.cpp")
    (quantized,) = TransformersEngine(model, tokenizer).log_probs(rows, "decoded")
    (unquantized,) = ours.log_probs(rows, "unquantized")
    assert kl_and_agreement(quantized, found)[0].mean() < 5e-3 < kl_and_agreement(unquantized, found)[0].mean()


def test_texts_that_are_too_long(llama: LlamaCppEngine) -> None:
    assert llama.max_length == 2047
    (best,) = llama.top_log_probs([[2, 5, 6]], 3, "fits")
    assert best.ids.shape == best.log_probs.shape == (3, 3)
    with pytest.raises(RunError, match="exceeds the available context"):
        llama.answers([[100] * 2048], 1, "too long")


def spoiled(content: bytes, what: str) -> bytes:
    """A file that is cut off, or has one other byte in its header."""
    if what == "cut off":
        return content[: len(content) // 2]
    place = {"magic": 0, "version": 4, "tensor count": 9, "a name": 40}[what]
    return content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]


@pytest.mark.parametrize("what", ["cut off", "magic", "version", "tensor count", "a name"])
def test_bad_files(file: Path, tmp_path: Path, tokenizer: Any, what: str) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(spoiled(file.read_bytes(), what))
    with pytest.raises(EngineUnavailable, match=r"bad.gguf: llama.cpp can't load it.*It said:(?s:.*)rror") as caught:
        LlamaCppEngine(bad, tokenizer, [1], threads=1)
    assert "Traceback" not in str(caught.value)


def test_no_file(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(EngineUnavailable, match="no such file"):
        LlamaCppEngine(tmp_path / "x.gguf", tokenizer, [1])


def test_a_missing_package(file: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match=r"gemma_tune\[gguf\]"):
        LlamaCppEngine(file, tokenizer, [1])


def test_it_dies(file: Path, tokenizer: Any) -> None:
    with LlamaCppEngine(file, tokenizer, [1], max_length=64, threads=1) as engine:
        engine.answers([[2, 5]], 1, "before")
        os.kill(engine._server.pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match=r"has died \(exit status -9\)"):
            engine.answers([[2, 5]], 1, "after")


def test_it_ends_with_its_parent(file: Path) -> None:
    """A parent that is killed leaves no server behind."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from gemma_tune.engines.llama_server import LlamaServer\n"
        "server = LlamaServer(Path(sys.argv[1]), 64, 1, 1, False, 60)\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
