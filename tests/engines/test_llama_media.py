"""Rows with pictures in llama.cpp and vLLM: the answers of Transformers, or a refusal, never an answer without them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from media_models import processor_folder, tokenizer_at
from PIL import Image
from scripted_chat import Person
from tower_models import Seeing, build
from transformers import AutoConfig
from translation_template import TEMPLATE as TRANSLATION

import gemma_tune
from gemma_tune.chat import Rendered, render_prompt
from gemma_tune.chat.render import Prompt
from gemma_tune.chat_cli.conversation import Conversation
from gemma_tune.chat_cli.weights import opened, positions_of
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.engines.json_client import JsonClient
from gemma_tune.engines.llama_cpp import LlamaCppEngine, TopTokens
from gemma_tune.engines.llama_media import ChatAnswer
from gemma_tune.engines.llama_prompt import media_prompt
from gemma_tune.engines.served import as_openai
from gemma_tune.engines.vllm import VllmEngine
from gemma_tune.errors import RunError
from gemma_tune.export import gguf, media_check, media_rows_check, mmproj, mmproj_files
from gemma_tune.export.int4_check import OK, UNVERIFIED, WARN, CheckLine
from gemma_tune.export.mmproj_files import mmproj_lines
from gemma_tune.export.mmproj_tensors import F32
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import Source, find_source
from gemma_tune.models.towers.media import checkpoint_of
from gemma_tune.serve.choice import chosen
from gemma_tune.serve.server import started
from gemma_tune.steps import measure_only
from gemma_tune.steps.media_rows import UnreadMedia, with_what_is_measured


def picture(file: Path, seed: int) -> Path:
    """Blurred colours, in the size of the tower."""
    colours = np.random.RandomState(seed).randint(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC).save(file)
    return file


def asked(*content: Path | str) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": str(c)} for c in content]
    return [{"role": "user", "content": parts}]


def files_of(name: str, folder: Path) -> Seeing:
    """A small model that sees, as a checkpoint, with its GGUF file and that of its towers, in float32."""
    seeing = build(name)
    with torch.no_grad():  # else a tied head says again what it has read last
        for key, weight in seeing.model.named_parameters():
            if "language_model" in key and "post_" in key and "norm" in key:
                weight.add_(4.0).copy_(weight.bfloat16())
    seeing.save(folder)
    generation = seeing.model.generation_config
    weights, config = seeing.language, seeing.model.config
    gguf.export(weights, config, seeing.tokenizer, generation, torch.float32, folder / "x.gguf", name="x", media=True)
    mmproj.export(seeing.towers, config, folder / mmproj.file_name("x", F32), name="x", kind=F32)
    return seeing


def written(folder: Path, chats: list[Any]) -> Path:
    said = [{"role": "assistant", "content": "12"}]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"messages": chat + said}) for chat in chats) + "\n", encoding="utf-8")
    return file


def evaluated(model: Path, test: Path, folder: Path, *words: str) -> dict[str, Any]:
    data = ["data=messages", f"data.test_files.mine={test}", f"data.validation_file={test}"]
    measured = ["eval.evaluators=[held_out_loss,answers]", "eval.max_new_tokens=12", "tracker=none"]
    given = [f"model.model_name_or_path={model}", f"output_dir={folder}", *data, *measured, *words]
    result = gemma_tune.run("evaluate", given)
    assert not result.failures
    found: dict[str, Any] = json.loads((folder / "eval" / "after.json").read_text("utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "gemma4_26b", "gemma4_e2b"])
def test_evaluate_answers_as_transformers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the same question about three pictures or about a sound, and to one without."""
    pytest.importorskip("xllamacpp")
    model = tmp_path / "model"
    seeing = files_of(name, model)
    shown = [[picture(tmp_path / f"{seed}.png", seed) for seed in seeds] for seeds in ((1,), (2, 3), (7,))]
    chats = [asked(*pictures, "Read it.") for pictures in shown]
    if name == "gemma4_26b":
        chats = [seeing.picture(tmp_path).messages]
    if name == "gemma4_e2b":  # is causal, and llama.cpp isn't for pictures
        chats = [seeing.sound(tmp_path).messages]
    test = written(tmp_path, [*chats, asked("Read it.")])
    theirs = evaluated(model / "x.gguf", test, tmp_path / "llama")
    assert "Left out of a GGUF file on validation rows with media: held_out_loss" in capsys.readouterr().out
    ours = evaluated(model, test, tmp_path / "ours", "model.dtype=float32")
    assert "held_out_loss" in ours["figures"] and "held_out_loss" not in theirs["figures"]
    found, wanted = (one["rows"]["mine_exact_match"] for one in (theirs, ours))
    assert [(row["answer"], row["stopped"]) for row in found] == [(row["answer"], row["stopped"]) for row in wanted]
    assert len({row["answer"] for row in wanted}) == len(chats) + 1, wanted  # they depend on what is seen and heard


@pytest.mark.slow
def test_serve_sees(tmp_path: Path) -> None:
    """What a client gets is what `recipe=evaluate` measures, with the file's own template and with a named one."""
    pytest.importorskip("xllamacpp")
    seeing = files_of("gemma3", tmp_path)
    chat = asked(picture(tmp_path / "1.png", 1), "Read it.")
    tokenizer = tokenizer_at(tmp_path)
    mmproj_file = tmp_path / mmproj.file_name("x", F32)
    with LlamaCppEngine(tmp_path / "x.gguf", tokenizer, [1], exact=True, mmproj=mmproj_file) as engine:
        seen, unseen = engine.answers([render_prompt(tokenizer, c) for c in (chat, asked("Read it."))], 8, "")
    assert seen != unseen
    for words in ([], ["model.chat_template=gemma3"]):
        cfg = compose_config("serve", [f"model.model_name_or_path={tmp_path / 'x.gguf'}", "serve.port=0", *words])
        served = chosen(cfg)
        assert served.mmproj == mmproj_file and mmproj_file.name in served.weights
        with started(served, cfg) as server:
            body = {"messages": as_openai(chat), "max_tokens": 8, "temperature": 0}
            said = JsonClient(server.url, 60.0).post("/v1/chat/completions", **body)["choices"][0]["message"]["content"]
        assert said == seeing.tokenizer.decode(seen), words


def test_what_a_file_is_not_asked_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(_: Any) -> None:
        raise UnreadMedia("it has no towers")

    monkeypatch.setattr(measure_only, "prepare_measurement", unread)
    folder: Any = SimpleNamespace(evals=tmp_path, result=SimpleNamespace(failures={}))
    found, left_out = measure_only.measure_where_read(Config(), "GGUF", folder)
    assert not found.figures and not folder.result.failures and not [*tmp_path.iterdir()]
    assert left_out == ["GGUF was not measured: it has no towers"]


@pytest.mark.slow
def test_chat_sees(tmp_path: Path) -> None:
    """A file of prompts, and a conversation in which a picture is put before a message: as with the checkpoint."""
    pytest.importorskip("xllamacpp")
    model = tmp_path / "model"
    files_of("gemma3", model)
    shown = [picture(tmp_path / f"{seed}.png", seed) for seed in (1, 7)]
    file = tmp_path / "prompts.jsonl"
    chats = [asked(shown[0], "Read it."), asked(*shown, "Read it."), asked("Read it.")]
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    words = ["chat.max_new_tokens=12", f"chat.prompts_file={file}"]
    theirs = gemma_tune.run("chat", [f"model.model_name_or_path={model / 'x.gguf'}", *words]).metrics["answers"]
    ours = gemma_tune.run("chat", [f"model.model_name_or_path={model}", "model.dtype=float32", *words])
    assert theirs == ours.metrics["answers"] and len({row["answer"] for row in theirs}) == 3
    cfg = compose_config("chat", [f"model.model_name_or_path={model / 'x.gguf'}", words[0]])
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    with opened(cfg, source, tokenizer, [], positions_of(cfg, source)) as responder:
        talk = Conversation(responder, [], None, Person(f"/image {shown[0]}", "Read it."))
        assert [row["answer"] for row in talk.run()] == [theirs[0]["answer"]]


def checked(tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, *shown: Any) -> list[CheckLine]:
    """The lines of an export's check in a llama.cpp that makes of every prompt what training makes without crops."""
    (folder / "mmproj-x.gguf").touch()
    monkeypatch.setattr(mmproj, "stored_mmproj_line", lambda *_: CheckLine("towers", "", "", OK))
    monkeypatch.setattr(mmproj_files, "_unseeing", lambda _: "")
    trained = SimpleNamespace(stops={1}, text_config=None, log_probs=lambda *_: torch.zeros(1, 4))
    monkeypatch.setattr(mmproj_files, "TrainedModel", lambda _: trained)
    plain = tokenizer_at(folder)

    def answers(file: Path, mmproj: Path, questions: Any, *_: Any) -> list[ChatAnswer]:
        none = TopTokens(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))
        return [ChatAnswer([], none, len(render_prompt(plain, q.messages)), True) for q in questions]

    for module in (media_check, media_rows_check):
        monkeypatch.setattr(module, "asked_in_chat", answers)
    towers: Any = SimpleNamespace(config=AutoConfig.from_pretrained(folder), tensors={}, shown=shown)
    return [*mmproj_lines("gguf", folder / "x.gguf", towers, SimpleNamespace(model=None), tokenizer)]


def test_pan_and_scan_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other lines compare without crops, and don't fail: neither a wide row nor a square that has crops, too."""
    always = {"pan_and_scan_min_crop_size": 4, "pan_and_scan_min_ratio_to_activate": 1}
    tokenizer = tokenizer_at(processor_folder("gemma3", tmp_path), do_pan_and_scan=True, **always)
    Image.new("RGB", (120, 40)).save(tmp_path / "wide.png")
    row = asked(tmp_path / "wide.png", "Read it.")
    assert len(render_prompt(tokenizer, row)) > len(render_prompt(tokenizer_at(tmp_path), row))
    _, line, *others = checked(tokenizer, tmp_path, monkeypatch, row)
    assert (line.name, line.verdict) == ("gguf: Pan & Scan", WARN) and "do_pan_and_scan" in line.problem
    assert [(one.name, one.verdict) for one in others] == [
        ("gguf: image in llama.cpp", OK), ("gguf: rows in llama.cpp's chat", OK)
    ]  # fmt: skip


def test_templates_that_take_no_picture_like_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the user's own has no place for it, which is no failure; TranslateGemma's gets it with its languages."""
    folder = processor_folder("gemma3", tmp_path)
    own = tmp_path / "mine.jinja"
    own.write_text(
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    tokenizer = load_tokenizer(Source(str(folder), None, None, str(folder)), str(own))
    _, line = checked(tokenizer, folder, monkeypatch)
    assert line.verdict == UNVERIFIED and "no place for image in your chat template" in line.problem
    (folder / "chat_template.jinja").write_text(TRANSLATION, encoding="utf-8")
    _, line = checked(tokenizer_at(folder), folder, monkeypatch)
    assert (line.name, line.verdict) == ("gguf: image in llama.cpp", OK)


def test_a_prompt_in_parts(tmp_path: Path) -> None:
    """Texts and pictures as llama.cpp gets them; it writes `<bos>`, and what begins and ends an image."""
    tokenizer = tokenizer_at(processor_folder("gemma3", tmp_path))
    first, second = picture(tmp_path / "1.png", 1), picture(tmp_path / "2.png", 2)
    prompt = render_prompt(tokenizer, asked("A", first, "or", second, "?"))
    found = media_prompt(tokenizer, prompt, prompt.media)
    assert found.asked("<M>")["prompt_string"] == (
        "<start_of_turn>user\nA\n\n<M>\n\nor\n\n<M>\n\n?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert [base64.b64decode(one) for one in found.media] == [first.read_bytes(), second.read_bytes()]
    assert sum(map(len, found.pieces)) == len(prompt) - 1 - 2 * (4 + 2)
    cropped = [{**prompt.media[0], "tokens": prompt.media[0]["tokens"] + 3}]
    with pytest.raises(RunError, match=r"1\.png: llama\.cpp has no Pan & Scan"):
        media_prompt(tokenizer, prompt, cropped)
    with pytest.raises(RunError, match="no video"):
        media_prompt(tokenizer, prompt, [{**prompt.media[0], "kind": "video"}])


def test_what_engines_refuse() -> None:
    """Neither sends the places of a picture without it."""
    row = Rendered([2, 9, 9, 5], [-100, -100, -100, 5], [{"kind": "image", "path": "a.png", "at": 1, "tokens": 2}])
    prompt = Prompt(row)
    llama, vllm = LlamaCppEngine.__new__(LlamaCppEngine), VllmEngine.__new__(VllmEngine)
    llama._marker, llama.vocabulary, vllm.tokenizer = None, 10, range(10)
    for engine, name in ((llama, "llama.cpp"), (vllm, "vLLM")):
        for ask in (
            lambda e: e.losses([row], ""),
            lambda e: list(e.log_probs([prompt], "")),
            lambda e: e.answers([[2, 5], prompt], 4, ""),
        ):
            with pytest.raises(RunError, match=rf"a\.png: {re.escape(name)}.* isn't asked for .* behind media"):
                ask(engine)


def test_what_is_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    source, cfg = Source(str(file), None, None, str(tmp_path)), Config(recipe="evaluate", method="evaluate")
    cfg.eval.evaluators = ["held_out_loss", "answers"]
    media = SimpleNamespace(images_kwargs={})
    tokenizer = SimpleNamespace(media=media, no_media="there is no processor")

    def refused(held: set[str], tested: set[str]) -> str:
        with pytest.raises(UnreadMedia) as error:
            with_what_is_measured(cfg, source, tokenizer, held, tested)
        return str(error.value)

    assert with_what_is_measured(cfg, source, tokenizer, set(), set()) == (cfg, [])
    assert "no file of towers (mmproj-*.gguf) stands beside it" in refused(set(), {"image"})
    (tmp_path / "mmproj-x.gguf").touch()
    assert with_what_is_measured(cfg, source, tokenizer, set(), {"image"}) == (cfg, [])
    found, notes = with_what_is_measured(cfg, source, tokenizer, {"image"}, {"image"})
    assert found.eval.evaluators == ["answers"] and "held_out_loss" in notes[0] and len(notes) == 1
    assert "not video" in refused({"video"}, set())
    media.images_kwargs = {"do_pan_and_scan": True}
    assert "Pan & Scan" in refused(set(), {"image"})
    tokenizer.media = None
    assert "there is no processor" in refused(set(), {"image"})
    tokenizer.media, media.images_kwargs, cfg.eval.evaluators = media, {}, ["held_out_loss"]
    assert "eval.evaluators: held_out_loss on validation rows with media" in refused({"image"}, set())
    (tmp_path / "mmproj-y.gguf").touch()
    assert "several files of towers" in refused(set(), {"image"})
    vllm = tmp_path / "vllm"
    vllm.touch(0o755)
    cfg.engine.vllm, source = str(vllm), Source(str(tmp_path), None, None, str(tmp_path))
    said = refused(set(), {"audio"})
    assert "Leave engine.vllm out" in said and "model.base_url" in said and "on a CPU it hides" in said


def test_the_processor_of_a_gguf_file(tmp_path: Path) -> None:
    """It is that of the checkpoint where the tokenizer is; of an adapter, its base's."""
    base, adapter = processor_folder("gemma3", tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    for folder in (base, adapter):
        found = checkpoint_of(Source(str(tmp_path / "x.gguf"), None, None, str(folder)))
        assert found and found.folder == base
    (base / "processor_config.json").unlink()
    assert checkpoint_of(Source(str(tmp_path / "x.gguf"), None, None, str(adapter))) is None
