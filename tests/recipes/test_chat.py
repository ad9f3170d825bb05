"""`recipe=chat` as users start it: one answer, files, the terminal, stored adapters, and every mistake.

What the embedded model says is nowhere asserted, since its words change with its weights.
"""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import refused, write
from peft import LoraConfig, PeftModel, get_peft_model
from short_runs import short_run
from transformers import AutoModelForCausalLM

import gemma_tune
from gemma_tune.chat import render_prompt
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import ChatConfig, ModelConfig
from gemma_tune.data.prompts import read_chat_prompts
from gemma_tune.errors import UserError
from gemma_tune.models import language_part
from gemma_tune.models.adapters.adapter_files import load_frozen_adapter
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import Source, find_source
from gemma_tune.run.identity import folder_of
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
TOOLS = [{"type": "function", "function": {"name": "set_light", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "set_light", "arguments": {"on": True}}}
ROWS = ["data=messages", "data.train_file=assets://sample/train.jsonl"]
QUICK = ["model=tiny", "model.dtype=float32", "chat.max_new_tokens=16"]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def write_rows(name: str, *rows: dict[str, Any]) -> Path:
    return write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def answers(*words: str) -> list[dict[str, Any]]:
    result = gemma_tune.run("chat", [*QUICK, *words])
    assert result.status == "finished" and result.recipe == "chat"
    found: list[dict[str, Any]] = result.metrics["answers"]
    return found


# One answer, and many


def test_one_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is printed and given back, and nothing is written."""
    (row,) = answers("chat.prompt=Hello, you, there!")
    assert row.keys() == {"prompt", "answer", "calls", "stopped"}
    assert row["prompt"] == "Hello, you, there!" and row["answer"]
    out, err = capsys.readouterr()
    assert out.strip() == row["answer"]
    assert "tiny" in err
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_file_gives_what_its_prompts_give_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSONL and text, in the file's order; only the output file is written."""
    texts = ["How much are 3 bananas?", "Hello!", "What is 4 plus 3, and who says that, please?"]
    single = [answers(f"chat.prompt={text}")[0] for text in texts]
    assert len({row["answer"] for row in single}) > 1
    write_rows(
        "p.jsonl", {"messages": [user(texts[0]), assistant("9")]}, {"prompt": texts[1]}, {"messages": [user(texts[2])]}
    )
    write("p.TXT", f"{texts[0]}\n\n  {texts[1]}\r\n{texts[2]}")
    capsys.readouterr()
    for words in (["chat.prompts_file=p.jsonl", "chat.batch_size=2"], ["chat.prompts_file=p.TXT"]):
        assert answers(*words) == single
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == single
    assert answers("chat.prompts_file=p.jsonl", "chat.output_file=out.jsonl") == single
    assert read_rows("out.jsonl") == single
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in folder.iterdir()) == ["out.jsonl", "p.TXT", "p.jsonl"]


@pytest.mark.slow
def test_sampling_hangs_on_the_seed(folder: Path) -> None:
    write("p.txt", "Hello!\nWho is it?\nTell me about the weather.\nSay something long, please.\n")
    words = ["chat=sampled", "chat.prompts_file=p.txt", "chat.temperature=2", "chat.top_p=1", "chat.batch_size=2"]
    first, again, other = (answers(*words, f"seed={seed}") for seed in (1, 1, 2))
    assert first == again != other
    one = [answers("chat=sampled", "chat.prompt=Hello!", "chat.temperature=2", f"seed={s}") for s in (1, 1, 2, 3, 4)]
    assert one[0] == one[1] and len({row["answer"] for (row,) in one}) > 1


def test_an_output_file_is_replaced_only_when_told(folder: Path) -> None:
    write("p.txt", "Hello!\n")
    write("out.jsonl", "precious\n")
    words = ["chat.prompts_file=p.txt", "chat.output_file=out.jsonl"]
    with pytest.raises(UserError, match=r"out\.jsonl: this file is there already.*overwrite=true"):
        answers(*words)
    assert Path("out.jsonl").read_text(encoding="utf-8") == "precious\n"
    answers(*words, "overwrite=true")
    assert len(read_rows("out.jsonl")) == 1


def test_dry_run_stops_before_the_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the configuration and counts what the prompts hold, tools and system text among it."""
    monkeypatch.setattr(language_part, "pick_device", None)  # what is called before any weight is loaded
    write("tools.json", json.dumps(TOOLS))
    words = ["chat.prompt=Lights on!", "chat.system=Be brief.", "chat.tools_file=tools.json", "dry_run=true"]
    result = gemma_tune.run("chat", words)
    tokenizer = load_tokenizer(Source(str(TINY), None, None, str(TINY)))
    ids = render_prompt(tokenizer, [{"role": "system", "content": "Be brief."}, user("Lights on!")], TOOLS)
    assert result.status == "dry_run" and result.metrics == {"prompts": 1, "tokens": len(ids)}
    out = capsys.readouterr().out
    assert "\n  prompt: Lights on!\n" in out and "\n  dtype: bfloat16\n" in out
    assert gemma_tune.run("chat", ["dry_run=true"]).metrics["prompts"] == 0  # a terminal isn't needed for that
    write_rows("p.jsonl", {"prompt": "Hello!", "source": "x"})
    gemma_tune.run("chat", ["chat.prompts_file=p.jsonl", "dry_run=true"])
    assert "/p.jsonl: source: 1 row\n" in capsys.readouterr().err


# What is asked


def test_conversations_of_a_file(folder: Path) -> None:
    """A last answer is left off, and only that; a row's own system text and tools win."""
    system = {"role": "system", "content": "Mine."}
    called, result = {**assistant(""), "tool_calls": [CALL]}, {"role": "tool", "content": "ok"}
    other = [{"type": "function", "function": {"name": "get_time"}}]
    rows: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
        ({"messages": [user("a")]}, [user("a")]),
        ({"messages": [user("a"), assistant("b")]}, [user("a")]),
        ({"messages": [user("a"), assistant("b"), user("c")]}, [user("a"), assistant("b"), user("c")]),
        ({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}, [user("a"), assistant("b"), user("c")]),
        ({"messages": [user("a"), called, result], "tools": other}, [user("a"), called, result]),
        ({"messages": [system, user("a")]}, [system, user("a")]),
        ({"messages": [user("m")], "prompt": "p"}, [user("m")]),
        ({"prompt": "p"}, [user("p")]),
    ]
    write_rows("p.jsonl", *(row for row, _ in rows))
    write("tools.json", json.dumps(TOOLS))
    added = {"role": "system", "content": "Ours."}
    chat = ChatConfig(prompts_file="p.jsonl", system="Ours.", tools_file="tools.json")
    found = read_chat_prompts(chat)
    assert [r.messages for r in found] == [m if m[0] == system else [added, *m] for _, m in rows]
    assert [r.tools == other for r in found] == [i == 4 for i in range(8)]
    assert all(r.tools == TOOLS for i, r in enumerate(found) if i != 4)
    assert [r.where for r in found] == [f"p.jsonl:{i + 1}" for i in range(8)]
    plain = read_chat_prompts(ChatConfig(prompts_file="p.jsonl"))
    assert [r.messages for r in plain] == [m for _, m in rows]
    assert [r.tools for r in plain] == [other if i == 4 else None for i in range(8)]


@pytest.mark.parametrize(
    "text",
    [
        "Hello, you!", "a, b", "it's {this: 1} [x", 'He said "no", twice', "x=3?", "C:\\new\\", "${HOME} and \\${x}",
        "two\nlines", " kept ", "true", "3", "Why (really) ~ @ ü 你好?", "'a' or 'b'", "back\\'slash", "#",
    ],
)  # fmt: skip
def test_a_prompt_is_taken_as_it_stands(text: str) -> None:
    """Commas, quotes, braces and dollars are Hydra's own elsewhere; a prompt holds what a person writes."""
    chat = compose_config("chat", [f"chat.prompt={text}", f"chat.system={text}"]).chat
    assert (chat.prompt, chat.system) == (text, text)


def test_a_prompt_quoted_for_hydra() -> None:
    for text in ('"a, b"', "'a, b'"):
        assert compose_config("chat", [f"chat.prompt={text}"]).chat.prompt == "a, b"
    assert compose_config("chat", ["chat.prompt=null"]).chat.prompt is None


# What has no say


def test_what_matters_only_for_training_is_no_mistake(folder: Path) -> None:
    words = [
        "model.load_in_4bit=true", "data=columns", "data.train_file=nix.jsonl", "train.max_steps=0", "export=none",
        "adapter.r=3", "train.optim=paged_adamw_8bit",
    ]  # fmt: skip
    assert compose_config("chat", words).model.load_in_4bit
    (row,) = answers("chat.prompt=Hello!", *words)
    assert row["answer"]


def test_types_of_the_weights() -> None:
    assert compose_config("chat", ["model=tiny"]).model.dtype == "bfloat16"
    assert compose_config("chat", ["model.dtype=null"]).model.dtype == "bfloat16"
    assert compose_config("chat", ["model.dtype=float32"]).model.dtype == "float32"
    assert compose_config("full_sft", [*ROWS, "model.dtype=null"]).model.dtype == "float32"


def test_chat_keys_of_other_recipes() -> None:
    with pytest.raises(UserError) as caught:
        compose_config("qlora_sft", [*ROWS, "chat=sampled", "chat.prompt=Hello"])
    assert len(caught.value.problems) == 2
    assert "chat.temperature has no effect with recipe=qlora_sft" in str(caught.value)
    assert "chat.prompt has no effect" in str(caught.value)


def test_runs_keep_their_folders() -> None:
    """The keys of chat are part of no other run: they change no digest."""
    cfg = compose_config("lora_sft", ROWS)
    before = folder_of(cfg)
    cfg.chat = ChatConfig(temperature=1.0)
    assert folder_of(cfg) == before


# Stored models


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QLoRA run whose adapter has another rank than the configuration's default."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["adapter.r=3", "train.learning_rate=3e-2", "eval=none", "eval.num_samples=0"]
    short_run("qlora_sft", folder, *ROWS, *words)
    return folder


IDS = torch.arange(30, 90).unsqueeze(0)


def loaded(path: Path, four_bit: bool = False) -> tuple[Any, Any]:
    """The base and the adapter's model, both in float32."""
    config = ModelConfig(model_name_or_path=str(path), dtype="float32", device="cpu", load_in_4bit=four_bit)
    source = find_source(config)
    assert source.adapter is not None
    base = load_base(config, source, load_tokenizer(source)).eval()
    with torch.no_grad():
        before = base(input_ids=IDS).logits
    return before, load_frozen_adapter(base, source.adapter)


@pytest.mark.parametrize("four_bit", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.slow
def test_an_adapter_stands_on_its_base(trained: Path, four_bit: bool) -> None:
    """Over whole and over 4-bit weights the logits are those that PEFT's own layers give, but for the order of sums."""
    before, model = loaded(trained, four_bit)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    config = ModelConfig(model_name_or_path=str(TINY), dtype="float32", device="cpu", load_in_4bit=four_bit)
    source = find_source(config)
    base = load_base(config, source, load_tokenizer(source))
    plain = PeftModel.from_pretrained(base, str(trained / "adapter")).eval()
    with torch.no_grad():
        found = model(input_ids=IDS).logits
        torch.testing.assert_close(found, plain(input_ids=IDS).logits, rtol=0, atol=1e-4)
    assert (found - before).abs().max() > 0.05


def test_an_adapter_that_cannot_be_trained_on_can_be_talked_to(tmp_path: Path) -> None:
    """With modules of its own beside LoRA, as PEFT's users make them."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    config = LoraConfig(r=5, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    stored = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, p in stored.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                p.normal_(std=0.5)
        expected = stored(input_ids=IDS).logits
    stored.save_pretrained(tmp_path)
    before, model = loaded(tmp_path)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, expected, atol=1e-4)
    assert (expected - before).abs().max() > 0.05


def test_runs_adapters_and_exports_are_talked_to(trained: Path, folder: Path, capsys: Any) -> None:
    """A run folder and its adapter are the same model; the base and the 4-bit base are others."""
    words = [
        "chat.prompt=Wake me at 7:15 on Monday.",
        "chat.tools_file=assets://sample/tools.json",
        "chat.max_new_tokens=40",
    ]
    run, adapter, quantized, merged = (
        answers(*words, f"model.model_name_or_path={path}", *more)[0]["answer"]
        for path, more in (
            (trained, []),
            (trained / "adapter", []),
            (trained, ["model.load_in_4bit=true"]),
            (trained / "export" / "merged", []),
        )
    )
    assert run == adapter
    assert "with the adapter" in capsys.readouterr().err
    assert all((run, quantized, merged))
    assert answers(*words)[0]["answer"] != run  # three steps at 3e-2 have changed what it says


# Mistakes: each in this process where torch is in already, and a few as users meet them


MISTAKES = {
    "prompt and file": (
        ["chat.prompt=a", "chat.prompts_file=p.jsonl"],
        ["chat.prompt and chat.prompts_file are both set; choose one"],
    ),
    "a command of the terminal": (["chat.prompt=/image a.png"], ["chat.prompt: /image puts an image", "rows with med"]),
    "such a command in a file": (["chat.prompts_file=command.txt"], ["command.txt:2: /audio puts sound before a mess"]),
    "nothing to answer": (["chat.prompt=  "], ["chat.prompt is empty"]),
    "no such file": (["chat.prompts_file=q.jsonl"], ["q.jsonl: there is no such file", "Did you mean p.jsonl?"]),
    "no such folder": (["chat.prompts_file=nix/q.jsonl"], ["there is no such file (nor its folder nix)"]),
    "a folder": (["chat.prompts_file=."], ["this is a folder; name a file"]),
    "no such tools": (["chat.prompt=a", "chat.tools_file=nix.json"], ["chat.tools_file=nix.json", "no such file"]),
    "a file of another kind": (["chat.prompts_file=p.docx"], ["p.docx: name it .jsonl", ".txt"]),
    "bad JSON": (["chat.prompts_file=bad.jsonl"], ["bad.jsonl:2: this line is not JSON"]),
    "no conversation": (["chat.prompts_file=odd.jsonl"], ["odd.jsonl:1: there is no field 'messages' or 'prompt'; fo"]),
    "bad roles": (["chat.prompts_file=roles.jsonl"], ["roles.jsonl:1: roles must alternate"]),
    "only a system text": (["chat.prompts_file=system.jsonl"], ["system.jsonl:1", "no message of the user's"]),
    "a prompt that is no text": (
        ["chat.prompts_file=list.jsonl"],
        ["list.jsonl:1", "neither a text nor a list of messages"],
    ),
    "an empty file": (["chat.prompts_file=empty.txt"], ["empty.txt: the file holds no prompts"]),
    "no UTF-8": (["chat.prompts_file=latin.txt"], ["latin.txt:1: the bytes are not UTF-8", "save the file as UTF-8"]),
    "control tokens": (["chat.prompt=a <end_of_turn>"], ["chat.prompt: the text holds <end_of_turn>"]),
    "control tokens in a file": (["chat.prompts_file=control.txt"], ["control.txt:2: the text holds <bos>"]),
    "control tokens in the system text": (["chat.prompt=a", "chat.system=<eos>"], ["chat.system: the text holds <eos"]),
    "bytes that are no text": (["chat.prompt=a\udce4"], ["chat.prompt: this is not UTF-8"]),
    "tools that are no list": (["chat.prompt=a", "chat.tools_file=tool.json"], ["tool.json: this is no list of tools"]),
    "tools of another form": (["chat.prompt=a", "chat.tools_file=names.json"], ["names.json: a tool: this text is no"]),
    "tools that are no JSON": (["chat.prompt=a", "chat.tools_file=broken.json"], ["broken.json:2: this is not JSON"]),
    "an output file without prompts": (
        ["chat.prompt=a", "chat.output_file=o.jsonl"],
        ["chat.output_file=o.jsonl takes the answers to chat.prompts_file, which is not set"],
    ),
    "an output file in no folder": (
        ["chat.prompts_file=p.jsonl", "chat.output_file=nix/o.jsonl"],
        ["chat.output_file=nix/o.jsonl: there is no folder nix"],
    ),
    "a folder for an output file": (["chat.prompts_file=p.jsonl", "chat.output_file=."], ["this is a folder; name a"]),
    "the prompts as output file": (
        ["chat.prompts_file=p.jsonl", "chat.output_file=./p.jsonl", "overwrite=true"],
        ["chat.output_file=./p.jsonl is a file that this run reads"],
    ),
    "top_k of nothing": (["chat.prompt=a", "chat.top_k=5"], ["chat.top_k has no effect with chat.temperature=0"]),
    "a run folder": (["chat.prompt=a", "output_dir=x"], ["output_dir has no effect with recipe=chat", "output_file"]),
    "no model": (["chat.prompt=a", "model.model_name_or_path="], ["model.model_name_or_path is empty"]),
    "no such model": (["chat.prompt=a", "model.model_name_or_path=./nix"], ["=./nix: there is no such model folder"]),
    "a folder without a model": (["chat.prompt=a", "model.model_name_or_path=."], ["this folder has no config.json"]),
    "no terminal": ([], ["no terminal to talk in", "chat.prompt=…", "chat.prompts_file=…"]),
    "too long": (["chat.prompts_file=long.txt"], ["long.txt:2: ", "tokens leave no room for an answer"]),
    "a typo": (["chat.temprature=1"], ["there is no key `chat.temprature`. Did you mean chat.temperature?"]),
    "a value out of its limits": (["chat.top_p=1.5"], ["chat.top_p must be at most 1, not 1.5"]),
    "an option that is none": (["chat=sample"], ["there is no chat `sample`. Did you mean sampled?"]),
}


@pytest.fixture
def files(folder: Path) -> Path:
    """What the mistakes are made with."""
    write_rows("p.jsonl", {"prompt": "Hello!"})
    write("p.docx", "Hello!\n")
    write("bad.jsonl", '{"prompt": "Hello!"}\n{"prompt": \n')
    write_rows("odd.jsonl", {"question": "Hello!"})
    write_rows("roles.jsonl", {"messages": [user("a"), user("b")]})
    write_rows("system.jsonl", {"messages": [{"role": "system", "content": "a"}]})
    write_rows("list.jsonl", {"prompt": ["a"]})
    write("empty.txt", "\n  \n")
    Path("latin.txt").write_bytes("Grüße\n".encode("latin-1"))
    write("command.txt", "Hello!\n/audio a.wav\n")
    write("control.txt", "Hello!\nHello <bos>!\n")
    write("long.txt", "Hello!\n" + "many words here " * 2000)
    write("tool.json", json.dumps(TOOLS[0]))
    write("names.json", '["set_light"]')
    write("broken.json", "[\n{]")
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(files: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message with what, where and the fix, before a weight is loaded."""
    words, expected = MISTAKES[name]
    monkeypatch.setattr(language_part, "pick_device", None)  # what is called before any weight is loaded
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello!\n"))
    before = sorted(files.rglob("*"))
    with pytest.raises(UserError) as caught:
        gemma_tune.run("chat", words)
    assert len(caught.value.problems) == 1
    assert all(e in str(caught.value) for e in expected), str(caught.value)
    assert sorted(files.rglob("*")) == before


@pytest.mark.slow
def test_adapters_that_do_not_fit(trained: Path, folder: Path) -> None:
    """Another kind, one that took its start out of the base, one of another base, and files that are broken."""
    adapter = folder / "adapter"
    config = json.loads((trained / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    weights = (trained / "adapter" / "adapter_model.safetensors").read_bytes()
    adapter.mkdir()
    for change, data, message in (
        ({"peft_type": "IA3"}, weights, "this is a IA3 adapter, and only LoRA is supported"),
        ({"init_lora_weights": "pissa"}, weights, "a pissa adapter fits only the base"),
        ({"target_modules": ["q_proj"]}, weights, "which its target_modules ({'q_proj'}) don't name"),
        ({"r": 5}, weights, "and this base needs (5, 768)"),
        ({}, b"half", "adapter_model.safetensors can't be used"),
        ({"base_model_name_or_path": "/nix"}, weights, "the adapter's base, /nix, is not there"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps(config | change), encoding="utf-8")
        (adapter / "adapter_model.safetensors").write_bytes(data)
        with pytest.raises(UserError) as caught:
            answers("chat.prompt=a", f"model.model_name_or_path={adapter}")
        assert message in str(caught.value), str(caught.value)
    (adapter / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json can.t be read"):
        answers("chat.prompt=a", f"model.model_name_or_path={adapter}")


@pytest.mark.parametrize("name", ["prompt and file", "bad JSON", "a folder without a model"])
def test_mistake_on_the_command_line(files: Path, name: str) -> None:
    """Status 2, one message, no traceback, no torch."""
    words, expected = MISTAKES[name]
    message = refused("recipe=chat", *words)
    assert all(e in message for e in expected), message


def test_all_mistakes_at_once(files: Path) -> None:
    message = refused(
        "recipe=chat", "chat.prompt=a, b", "chat.prompts_file=q.jsonl", "chat.output_file=.", "chat.top_k=5"
    )
    assert message.startswith("gemma_tune: 4 problems:")


# The terminal


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.slow
def test_in_a_terminal(folder: Path) -> None:
    """The whole command behind a pseudo-terminal: two turns, a command, Ctrl-D."""
    import pty

    terminal, end = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "gemma_tune", "recipe=chat", *QUICK],
        stdin=end,
        stdout=end,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "dumb"},
    )
    os.close(end)
    seen = b""
    try:
        for line in (b"Hello!\n", b"/new\n", b"Hello!\n", b"\x04"):
            so_far, until = len(seen), time.monotonic() + 120
            while b"you> " not in seen[so_far:]:
                assert time.monotonic() < until and child.poll() is None, seen
                if select.select([terminal], [], [], 1)[0]:
                    seen += os.read(terminal, 4096)
            os.write(terminal, line)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
        os.close(terminal)
    assert child.returncode == 0, err.decode()
    assert b"(a new conversation)" in err and b"Traceback" not in err
    said = [part.split(b"Hello!\r\n")[1] for part in seen.split(b"you> ") if b"Hello!\r\n" in part]
    assert len(said) == 2 and said[0] == said[1] != b""  # the first conversation is forgotten
    assert list(folder.iterdir()) == []
