"""What Transformers' own class and processor make of a conversation with images: tests hold ours against it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from media_models import processor_of
from PIL import Image
from transformers import AutoConfig

from gemma_tune.models.towers.towers import Towers


def picture(file: Path, draw: random.Random) -> str:
    """Writes a picture of noise of a random size; its path."""
    size = (draw.randrange(100, 400), draw.randrange(100, 400))
    Image.frombytes("RGB", size, draw.randbytes(3 * size[0] * size[1])).save(file)
    return str(file)


def processor_of_folder(model: Path) -> tuple[Any, Any]:
    """The real processor of a folder of `media_folder`, and its config."""
    names = {"gemma3": "gemma3", "gemma3n": "gemma3n", "gemma4": "gemma4_31b"}
    config = AutoConfig.from_pretrained(model)
    return processor_of(names[config.model_type], model, backend="pil"), config


def stop(processor: Any) -> str:
    """The token that ends an answer."""
    return "<end_of_turn>" if "<end_of_turn>" in processor.tokenizer.chat_template else "<turn|>"


def text_of(processor: Any, messages: list[dict[str, Any]], prompt: bool) -> str:
    """What the published template makes of messages."""
    return str(processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


def processed(processor: Any, text: str, images: list[Any]) -> dict[str, Any]:
    """What the real processor makes of a text, for the whole class."""
    types = {"return_mm_token_type_ids": True}
    made = processor(text=text.removeprefix("<bos>"), images=images or None, return_tensors="pt", text_kwargs=types)
    return dict(made)


def conversations(folder: Path, answers: int) -> list[dict[str, Any]]:
    """Prompts with one image, two images, none and one, each with so many answers, in `messages` and `answers`."""
    draw, rows = random.Random(0), []
    for number, count in enumerate((1, 2, 0, 1)):
        parts: list[dict[str, Any]] = [
            {"type": "image", "image": picture(folder / f"{number}-{i}.png", draw)} for i in range(count)
        ]
        parts.append(
            {"type": "text", "text": " ".join(draw.choices(["What", "is", "on", "the", "meter"], k=number + 2))}
        )
        said = [" ".join(draw.choices(["It", "says", "twelve", "kWh", "maybe"], k=i + 2)) for i in range(answers)]
        rows.append({"messages": [{"role": "user", "content": parts}], "answers": said})
    return rows


def prompt_inputs(processor: Any, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What the real processor makes of a prompt."""
    parts = [part for message in messages for part in message["content"]]
    images = [Image.open(part["image"]).convert("RGB") for part in parts if part["type"] == "image"]
    return processed(processor, text_of(processor, messages, prompt=True), images)


def answer_ids(processor: Any, answer: str) -> list[int]:
    """The tokens of an answer, and the one that ends it."""
    return list(processor.tokenizer(f"{answer}{stop(processor)}", add_special_tokens=False)["input_ids"])


def log_probs(net: Any, inputs: dict[str, Any], answer: list[int]) -> torch.Tensor:
    """Of each token of an answer to a prompt by the whole class, one row alone, [T]."""
    more = torch.tensor([answer])
    filled = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    types = {name: torch.zeros_like(more) for name in inputs if name.endswith("token_type_ids")}
    whole = {**inputs, **{n: torch.cat([inputs[n], t], 1) for n, t in (filled | types).items()}}
    logits = net(**whole).logits[0, -len(answer) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, more[0][:, None])[:, 0]


def passes_without_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each forward pass over image tokens that will be made from now on without their images."""
    without: list[int] = []
    place = Towers.place

    def watched(self: Towers, text: Any, args: Any, given: dict[str, Any]) -> Any:
        ids = given["input_ids"] if "input_ids" in given else args[0]
        if self.batch is None and bool((ids == self.whole.config.image_token_id).any()):
            without.append(ids.shape[0])
        return place(self, text, args, given)

    monkeypatch.setattr(Towers, "place", watched)
    return without
