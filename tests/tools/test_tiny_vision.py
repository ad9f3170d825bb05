"""`data/tiny_vision` and `data/sample_images`: what they hold, and that their scripts make it."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from gemma_tune.run.paths import ASSETS
from tools import sample_images
from tools.tiny_vision.model import SOFT_TOKENS, build_model, build_tokenizer, save
from tools.tiny_vision.pictures import COLUMNS
from tools.tiny_vision.tower import Reader, row_of_characters, train

TINY_VISION, SAMPLE = ASSETS / "tiny_vision", ASSETS / "sample_images"
LIMIT = 15_000_000  # bytes of the folder


def test_the_model_loads_whole() -> None:
    """Every tensor of Google's names finds its place, in the class that the checkpoint names, and none is missing."""
    assert sum(f.stat().st_size for f in TINY_VISION.iterdir()) <= LIMIT
    model, found = Gemma3ForConditionalGeneration.from_pretrained(
        TINY_VISION, output_loading_info=True, trust_remote_code=False, use_safetensors=True
    )
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert model.dtype == torch.bfloat16
    with safe_open(TINY_VISION / "model.safetensors", "pt") as file:
        parts = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
    assert parts == {"language_model", "vision_tower", "multi_modal_projector"}


def test_its_language_part_is_the_embedded_model() -> None:
    old, new = load_file(ASSETS / "tiny" / "model.safetensors"), load_file(TINY_VISION / "model.safetensors")
    for name, tensor in old.items():
        assert torch.equal(new[f"language_model.{name}"][: len(tensor)], tensor), name
    assert len(new["language_model.model.embed_tokens.weight"]) == len(old["model.embed_tokens.weight"]) + 2


def test_its_processor_writes_sixteen_soft_tokens() -> None:
    processor = AutoProcessor.from_pretrained(TINY_VISION, trust_remote_code=False)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read it."}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=text, images=[Image.new("RGB", (300, 90))], return_tensors="pt")
    soft = processor.tokenizer.convert_tokens_to_ids("<image_soft_token>")
    assert int((inputs["input_ids"] == soft).sum()) == SOFT_TOKENS
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)


def test_no_picture_of_the_tower_has_four_digits() -> None:
    """A meter of four digits is what a fine-tuned model learns; its tower has seen three at most."""
    rng = random.Random(0)
    kinds = [(True, True), (True, False), (False, False)] * 500
    made = [row_of_characters(rng, digits, plain) for digits, plain in kinds]
    assert {sum(c.isdigit() for c in row) for row in made} == {0, 1, 2, 3}
    assert {len(row) for row in made} == {COLUMNS}


def rows(split: str) -> list[tuple[str, str, bytes]]:
    """Question, answer and picture of each committed row."""
    if split == "train":
        table = pq.read_table(SAMPLE / "train.parquet").to_pylist()
        turns = [[message["content"] for message in row["messages"]] for row in table]
        pictures = [row["images"][0]["bytes"] for row in table]
        return [(q.removeprefix("<image>"), a, picture) for (q, a), picture in zip(turns, pictures, strict=True)]
    found = []
    for line in (SAMPLE / f"{split}.jsonl").read_text("utf-8").splitlines():
        question, answer = json.loads(line)["messages"]
        picture, text = question["content"]
        found.append((text["text"], answer["content"], (SAMPLE / picture["image_url"]["url"]).read_bytes()))
    return found


def test_nothing_of_a_test_is_in_training() -> None:
    answers = {split: [answer for _, answer, _ in rows(split)] for split in sample_images.ROWS}
    assert {split: len(set(found)) for split, found in answers.items()} == sample_images.ROWS
    assert not any(sample_images.is_held_out(n) for n in answers["train"])
    assert all(sample_images.is_held_out(n) for n in answers["validation"] + answers["test"])
    assert not set(answers["validation"]) & set(answers["test"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_script_makes_the_sample(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows, their pictures to the pixel; another build of zlib may write other bytes."""
    first = {split: found[:20] for split, found in sample_images.numbers(0).items()}
    monkeypatch.setattr(sample_images, "numbers", lambda seed: first)
    for made, kept in zip(sample_images.rows(split, 0), rows(split)[:20], strict=True):
        assert made[:2] == kept[:2]
        pixels, others = (np.asarray(Image.open(io.BytesIO(row[2])).convert("RGB")) for row in (made, kept))
        assert np.array_equal(pixels, others)


@pytest.mark.slow
def test_a_short_training_writes_such_a_folder(tmp_path: Path) -> None:
    """The tower and the projector change, and no weight of the language part does."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, 0)
    before: dict[str, Any] = {name: p.clone() for name, p in model.named_parameters()}
    train(Reader(model, tokenizer), 12, 0, tmp_path / "log.jsonl")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("language_model" in name or "lm_head" in name), name
    save(model, tokenizer, tmp_path / "folder")
    for file in (tmp_path / "folder").iterdir():
        kept = TINY_VISION / file.name
        assert file.suffix == ".safetensors" or file.read_text("utf-8") == kept.read_text("utf-8"), file.name
    assert (
        load_file(tmp_path / "folder" / "model.safetensors").keys()
        == load_file(TINY_VISION / "model.safetensors").keys()
    )
