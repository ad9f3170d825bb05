"""Training on rows with images equals the checkpoint's own class with its own processor, packed, padded and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from media_models import folders_once
from media_plain import processed, processor_of_folder, stop, text_of
from media_rows import ROWS, media_rows, trained
from pictures import film, picture, sound
from PIL import Image
from resumed import lines, stopped_at, weights
from safetensors.torch import load_file
from short_runs import losses, metrics
from slow import slow_after
from transformers import AutoModelForCausalLM

import gemma_tune
from gemma_tune.chat import render_prompt
from gemma_tune.config import ModelConfig
from gemma_tune.config.methods import METHODS
from gemma_tune.errors import UserError
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import Source
from gemma_tune.models.towers.media import media_inputs
from gemma_tune.models.towers.towers import seeing
from gemma_tune.steps.session import Session

FAMILIES_HERE = ("gemma3", "gemma3n", "gemma4_e2b", "gemma4_31b")  # 3n where timm is installed


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with one image, two images, two turns and none, of other sizes each."""
    return media_rows(tmp_path_factory.mktemp("rows"), turns=2)


@pytest.fixture(scope="module")
def rows_of_one_turn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for models that are trained on each answer in a row of its own (Gemma 4 12B and larger)."""
    return media_rows(tmp_path_factory.mktemp("turn"), turns=1)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return folders_once(tmp_path_factory)


def plain_gradients(model: Path, rows: Path, towers: bool) -> tuple[float, float]:
    """Loss and norm of the gradients of all rows, by the checkpoint's own class and processor, one row at a time."""
    processor, config = processor_of_folder(model)
    net: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    total, count = torch.zeros(()), 0
    for line in rows.read_text("utf-8").splitlines():
        inputs, labels = _plain_row(processor, json.loads(line)["messages"])
        logits = net(**inputs).logits
        total = total + torch.nn.functional.cross_entropy(logits[0, :-1], labels[1:], reduction="sum")
        count += int((labels[1:] != -100).sum())
    (total / count).backward()
    family = FAMILIES[config.model_type]
    taken = [p.grad for n, p in net.named_parameters() if p.grad is not None and (towers or not family.is_tower(n))]
    return (total / count).item(), torch.stack([g.norm() for g in taken]).norm().item()


def _plain_row(processor: Any, messages: list[dict[str, Any]]) -> tuple[dict[str, Any], torch.Tensor]:
    """Inputs of the processor, and the labels: what each answer adds to its prompt, up to the token that ends it."""
    images = [Image.open(p["image"]).convert("RGB") for m in messages if m["role"] == "user" for p in m["content"][:-1]]
    texts = [text_of(processor, messages[:i], prompt=True) for i, m in enumerate(messages) if m["role"] == "assistant"]
    # The last prompt may end with an empty thought, which the template leaves out of an answer that is history
    whole = processed(processor, f"{texts[-1]}{messages[-1]['content']}{stop(processor)}", images)
    ids, labels = whole["input_ids"][0], torch.full_like(whole["input_ids"][0], -100)
    for text, answer in zip(texts, (m for m in messages if m["role"] == "assistant"), strict=True):
        seen = images[: sum(text.count(mark) for mark in ("<start_of_image>", "<image_soft_token>", "<|image|>"))]
        begin, end = (
            processed(processor, t, seen)["input_ids"].shape[1]
            for t in (text, f"{text}{answer['content']}{stop(processor)}")
        )
        labels[begin:end] = ids[begin:end]
    return whole, labels


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("family", slow_after(1, FAMILIES_HERE))
def test_first_loss_and_gradients(
    family: str,
    packing: bool,
    rows: Path,
    rows_of_one_turn: Path,
    folder_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    rows = rows_of_one_turn if family == "gemma4_31b" else rows
    model, words = folder_of(family), ["train.packing=true", "train.max_length=2048"] if packing else []
    trained("full_sft", model, rows, tmp_path / "run", "train.max_grad_norm=1e9", *words)
    line = next(line for line in metrics(tmp_path / "run") if "loss" in line)
    loss, norm = plain_gradients(model, rows, towers=False)
    assert (line["loss"], line["grad_norm"]) == pytest.approx((loss, norm), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_gradients_of_trained_towers(
    family: str, rows_of_one_turn: Path, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model, rows = folder_of(family), rows_of_one_turn
    trained("full_sft", model, rows, tmp_path / "run", "train.max_grad_norm=1e9", "model.train_towers=full")
    line = next(line for line in metrics(tmp_path / "run") if "loss" in line)
    assert (line["loss"], line["grad_norm"]) == pytest.approx(plain_gradients(model, rows, towers=True), rel=1e-5)


@pytest.mark.slow
def test_accumulated_batches_are_one(rows: Path, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    found = []
    for batch in (1, ROWS):
        words = [f"train.per_device_train_batch_size={batch}", f"train.gradient_accumulation_steps={ROWS // batch}"]
        found.append(losses(trained("lora_sft", folder_of("gemma3"), rows, tmp_path / str(batch), *words, steps=2)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["full", pytest.param("projector", marks=pytest.mark.slow)])
def test_trained_towers_are_stored_and_loaded(
    parts: str, rows: Path, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """In the merged export for everybody, beside the adapter for us; what isn't trained is exported to the bit."""
    model = folder_of("gemma3")
    run = trained(
        "lora_sft", model, rows, tmp_path / "run", f"model.train_towers={parts}", "export=merged",
        "export.dtype=float32", steps=3,
    )  # fmt: skip
    before, after = (load_file(folder / "model.safetensors") for folder in (model, run / "export" / "merged"))
    towers = {name for name in before if FAMILIES["gemma3"].is_tower(name)}
    beside = load_file(run / "adapter" / "towers.safetensors")
    assert before.keys() == after.keys()
    assert beside.keys() == {n for n in towers if parts == "full" or "projector" in n}
    assert all(torch.equal(after[n], beside[n] if n in beside else before[n]) for n in towers)
    assert sum(not torch.equal(after[n], before[n]) for n in beside) > len(beside) / 2
    exported = gemma_tune.run(
        "export",
        [f"model.model_name_or_path={run}", "export=merged", "export.dtype=float32", "quant=none", "tracker=none",
         f"output_dir={tmp_path / 'export'}"],
    )  # fmt: skip
    again = load_file(exported.folder / "export" / "merged" / "model.safetensors")
    assert all(torch.equal(again[n], after[n]) for n in towers)
    went_on = trained("lora_sft", run, rows, tmp_path / "again", f"model.train_towers={parts}", steps=1)
    assert losses(went_on)[0] < losses(run)[-1]


@pytest.mark.parametrize("family", slow_after(1, ("gemma3", "gemma3n")))
def test_frozen_towers_are_exported_to_the_bit(
    family: str, rows: Path, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = folder_of(family)
    run = trained("full_sft", model, rows, tmp_path / "run", "export=merged", steps=2)
    before, after = (load_file(folder / "model.safetensors") for folder in (model, run / "export" / "merged"))
    assert not (run / "adapter").exists()
    assert all(torch.equal(after[n], before[n]) for n in before if FAMILIES[family].is_tower(n))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("lora_sft", ["model.train_towers=full"]),
        ("lora_sft", ["model.train_towers=lora", "adapter.lora_dropout=0.1"]),
        ("full_sft", ["train.packing=true", "train.max_length=2048"]),
    ],
    ids=["towers", "their adapters", "packed"],
)
def test_a_resumed_run_is_the_run_that_nobody_stopped(
    recipe: str, words: list[str], rows: Path, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """To the bit; and with another image than it began with it isn't resumed."""
    words = ["train.save_steps=1", "train.save_total_limit=null", "train.per_device_train_batch_size=2", *words]
    text = rows.read_text("utf-8").replace(str(rows.parent), str(tmp_path))  # images of its own, to change one
    for file in rows.parent.glob("*.png"):
        shutil.copy2(file, tmp_path)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    given = (recipe, folder_of("gemma3"), tmp_path / "rows.jsonl")
    whole = trained(*given, tmp_path / "whole", "export.dtype=float32", *words, steps=4)
    stopped_at(whole, tmp_path / "once", 2)
    shutil.copytree(tmp_path / "once", tmp_path / "changed")
    once = trained(*given, tmp_path / "once", "export.dtype=float32", *words, steps=4)
    assert lines(once) == lines(whole) and len(losses(once)) == 4
    assert weights(once) == weights(whole)
    assert len(weights(whole)) == (1 if recipe == "full_sft" else 3 if "model.train_towers=full" in words else 2)
    shutil.copyfile(tmp_path / "5-0.png", tmp_path / "4-0.png")
    with pytest.raises(UserError, match="images, sounds and videos of the rows: one of them has changed"):
        trained(*given, tmp_path / "changed", "export.dtype=float32", *words, steps=4)


def test_other_recipes_refuse_what_they_would_lose(
    rows: Path, folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "sft", replace(METHODS["sft"], media=False))  # as one that is new may be
    with pytest.raises(UserError, match=r"rows.jsonl:1: this row has an image, and recipe=full_sft knows text alone"):
        trained("full_sft", folder_of("gemma3"), rows, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gemma4_12b", ["image", "image"]),
        ("gemma4_e2b", ["video", "image", "audio"]),
        ("gemma4_31b", ["image", "video"]),
    ],
)
def test_packed_media_are_what_the_models_own_class_makes_of_each(
    family: str, kinds: list[str], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Videos, sound, and Gemma 4 12B, whose images are seen beyond the window; our tensors are held to the processors'
    elsewhere."""
    source = Source(str(folder_of(family)), None, None, str(folder_of(family)))
    tokenizer = load_tokenizer(source)
    cfg = ModelConfig(model_name_or_path=source.base, dtype="float32", device="cpu")
    ours = load_base(cfg, source, tokenizer).eval()
    theirs: Any = AutoModelForCausalLM.from_pretrained(source.base, dtype=torch.float32).eval()
    pytest.importorskip("av")
    made = {"image": lambda i: picture(tmp_path, 150 + 60 * i, 200), "audio": lambda i: sound(tmp_path, 20_000 + i)}
    made["video"] = lambda i: film(tmp_path, 3 + i, 2)
    content = [{"type": kind, kind: made[kind](i)} for i, kind in enumerate(kinds)]
    rows = [[*content, {"type": "text", "text": "All?"}], [content[-1], {"type": "text", "text": "And this one?"}]]
    prompts, wanted = [render_prompt(tokenizer, [{"role": "user", "content": row}]) for row in rows], []
    for prompt in prompts:
        ids, media = torch.tensor([prompt]), media_inputs(tokenizer, [prompt])
        with torch.no_grad(), seeing(theirs, media, ids) as given:
            wanted.append(theirs(input_ids=ids, **given).logits[0])
    places = torch.cat([torch.arange(len(prompt)) for prompt in prompts])[None]
    with torch.no_grad(), seeing(ours, media_inputs(tokenizer, prompts)):
        packed = torch.tensor([[token for prompt in prompts for token in prompt]])
        found = ours(input_ids=packed, position_ids=places, use_cache=False).logits[0]
    assert (found - torch.cat(wanted)).abs().max() <= 2e-5 * found.abs().max()


@pytest.mark.slow
def test_the_end_of_full_training_is_kept_with_its_towers(
    rows: Path, folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends between training and export goes on from the kept weights, those of the towers among them."""
    model, words = folder_of("gemma3"), ["model.train_towers=full", "export.dtype=float32"]
    whole = trained("full_sft", model, rows, tmp_path / "whole", *words, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "export", _killed)
        with pytest.raises(KeyboardInterrupt):
            trained("full_sft", model, rows, tmp_path / "run", *words, steps=2)
    run = trained("full_sft", model, rows, tmp_path / "run", *words, steps=2)
    found, wanted = (load_file(folder / "export" / "merged" / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.train_towers=full", "export.formats=[gguf_lora]"], "towers for images and sound are trained"),
        (["train.towers_learning_rate=1e-3"], "no tower is trained; set projector, lora or full"),
        (["model.train_towers=lora", "adapter=none"], "adapters of towers are of the kind and rank"),
    ],
    ids=["gguf_lora", "rate", "no adapter"],
)
def test_what_would_lose_media_or_towers_is_refused(
    words: list[str], said: str, rows: Path, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        trained("lora_sft", folder_of("gemma3"), rows, tmp_path / "run", *words)


@pytest.mark.slow
def test_towers_have_a_rate_of_their_own(rows: Path, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """With a rate of next to nothing they stay where they are, while the adapter learns."""
    words = ["model.train_towers=full", "train.towers_learning_rate=1e-12"]
    run = trained("lora_sft", folder_of("gemma3"), rows, tmp_path / "run", *words, steps=3)
    stored = load_file(run / "adapter" / "towers.safetensors")
    before = load_file(folder_of("gemma3") / "model.safetensors")
    assert all((stored[name] - before[name]).abs().max() < 1e-9 for name in stored)
    assert losses(run)[-1] < losses(run)[0]
    assert "Text only: PEFT doesn't load the towers" in (run / "adapter" / "README.md").read_text("utf-8")
