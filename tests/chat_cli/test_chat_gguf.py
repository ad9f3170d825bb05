"""Talking to a GGUF file: what llama.cpp writes is printed and kept as what Transformers writes, media included."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from media_files import picture
from media_models import IMAGE_TOKENS, processor_folder, tokenizer_at
from scripted_chat import LIMIT, Person, user
from transformers import AutoModelForCausalLM, AutoTokenizer

import gemma_tune
from gemma_tune.chat import STOP_TOKEN
from gemma_tune.chat_cli.conversation import Conversation
from gemma_tune.chat_cli.weights import LlamaResponder, check_media, positions_of
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import ChatConfig
from gemma_tune.data.records import Record
from gemma_tune.errors import UserError
from gemma_tune.export.gguf import export
from gemma_tune.models.source import Source, find_source
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"


class Scripted:
    """llama.cpp with prepared answers; with `interrupted` a person stops one there."""

    def __init__(self, tokenizer: Any, *says: str, interrupted: int | None = None) -> None:
        self.tokenizer, self.max_length, self.vocabulary = tokenizer, LIMIT, len(tokenizer)
        self.says, self.interrupted = list(says), interrupted
        self.asked, self.sampled = list[Any](), list[Any]()
        self.ended = 0

    def written(self, prompt: Sequence[int], room: int, sampling: Any) -> Generator[int, None, None]:
        self.asked.append(prompt)
        self.sampled.append(dict(sampling))
        try:
            ids = self.tokenizer(self.says.pop(0) + STOP_TOKEN, add_special_tokens=False).input_ids
            for place, token in enumerate(ids[:room]):
                if place == self.interrupted:
                    raise KeyboardInterrupt
                yield token
        finally:
            self.ended += 1


def responder(engine: Scripted, chat: ChatConfig | None = None, **why: str | None) -> LlamaResponder:
    return LlamaResponder(engine, chat or ChatConfig(), 42, why)  # type: ignore[arg-type]


def test_images_in_a_conversation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They reach llama.cpp with the prompt, and stay in it; what the file can't read is said with the reason."""
    tokenizer = tokenizer_at(processor_folder("gemma3", folder / "model"))
    picture(Path("a.png"), 40, 30)
    engine = Scripted(tokenizer, "One.", "Two.")
    person = Person("/image a.png", "What is it?", "And now?", "/audio a.wav")
    rows = Conversation(responder(engine, image=None, audio=None), [], None, person).run()
    assert [row["answer"] for row in rows] == ["One.", "Two."] and all(row["stopped"] for row in rows)
    assert [[m["tokens"] for m in asked.media] for asked in engine.asked] == [[IMAGE_TOKENS]] * 2
    out, err = capsys.readouterr()
    assert out.split() == ["One.", "Two."] and "takes no audio, only image" in err
    blind = responder(Scripted(tokenizer, "Hi."), image="no file of towers stands beside it", audio=None)
    Conversation(blind, [], None, Person("/image a.png", "/help", "Hi")).run()
    err = capsys.readouterr().err
    assert "this model takes no image: no file of towers stands beside it." in err and "/image FILE" not in err


def test_ctrl_c_ends_what_llama_cpp_writes(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    engine = Scripted(tokenizer, "One two three four five six.", interrupted=4)
    answer = responder(engine).answer(user("Count!"), None, "here", stoppable=True)
    assert engine.ended == 1 and not answer.stopped and "One two three four five six.".startswith(answer.text)
    assert answer.text and "(stopped)" in capsys.readouterr().err


def test_sampling() -> None:
    """In the order of Transformers, another seed for each answer; greedy without one."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    engine = Scripted(tokenizer, "A.", "B.", "C.")
    drawn = responder(engine, ChatConfig(temperature=0.5, top_k=3, top_p=0.9))
    assert [len(ids) for ids in drawn.write_batch([[2, 5], [2, 6]], 9)] == [3, 3]
    assert engine.sampled[0] == {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "samplers": ["temperature", "top_k", "top_p"], "seed": 42,
    }  # fmt: skip
    assert engine.sampled[1]["seed"] == 43
    responder(engine).write_batch([[2]], 9)
    assert engine.sampled[2] == {"temperature": 0.0, "samplers": ["temperature"]}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The embedded model in float32."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY)
    weights = {name: p.detach().float() for name, p in model.named_parameters()}
    place = tmp_path_factory.mktemp("gguf") / "x.gguf"
    yield export(weights, model.config, tokenizer, model.generation_config, torch.float32, place, name="x")


def test_the_recipe_answers_as_with_the_checkpoint(file: Path, folder: Path) -> None:
    """One prompt streamed, and a file of prompts."""
    pytest.importorskip("xllamacpp")
    Path("p.jsonl").write_text('{"prompt": "What is 12 plus 5?"}\n{"prompt": "Hi"}\n', encoding="utf-8")
    words = ["chat.max_new_tokens=24", "chat.prompts_file=p.jsonl"]
    gguf = [f"model.model_name_or_path={file}", f"model.tokenizer_name_or_path={TINY}"]
    theirs = gemma_tune.run("chat", [*gguf, *words, "chat.output_file=out.jsonl"]).metrics["answers"]
    ours = gemma_tune.run("chat", [*words, "model.dtype=float32"]).metrics["answers"]
    assert theirs == ours and theirs[0]["stopped"] and theirs[0]["answer"] != theirs[1]["answer"]
    assert [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()] == theirs


def test_what_is_refused_before_the_file_is_loaded(file: Path, tmp_path: Path) -> None:
    gguf = [f"model.model_name_or_path={file}", f"model.tokenizer_name_or_path={TINY}"]
    with pytest.raises(UserError, match=r"chat\.batch_size has no effect on a GGUF file"):
        compose_config("chat", [*gguf, "chat.batch_size=3"])
    with pytest.raises(UserError, match=r"model\.load_in_4bit has no effect on a GGUF file"):
        compose_config("chat", [*gguf, "model.load_in_4bit=true"])
    cfg = compose_config("chat", [*gguf, "engine.max_length=99"])
    source = find_source(cfg.model)
    assert positions_of(cfg, source) == 99
    cfg.engine.max_length = None
    assert positions_of(cfg, source) == 2047  # the embedded model has 2,048 positions
    image = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
    tokenizer = SimpleNamespace(media=SimpleNamespace(images_kwargs={}))
    with pytest.raises(UserError, match=r"rows have media \(image\), and no file of towers \(mmproj-\*\.gguf\)"):
        check_media(source, tokenizer, [Record("p:1", messages=image)])
    check_media(Source(str(TINY), None, None, str(TINY)), tokenizer, [Record("p:1", messages=image)])
