"""Questions for the check of an mmproj file: with a picture and a sound of our own making, and those of rows."""

from __future__ import annotations

import wave
from collections.abc import Iterable, Iterator, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from gemma_tune.chat import form_of
from gemma_tune.chat.media import media_in
from gemma_tune.chat.own import OwnForm
from gemma_tune.chat.render import prompt_row
from gemma_tune.config.data import LANGUAGES
from gemma_tune.data.records import Record
from gemma_tune.engines.llama_prompt import TAKEN
from gemma_tune.export.media_reference import Question

_RATE, _SECONDS = 16_000, 2
_PLAIN = ("role", "content", "weight")  # the keys of a message that is neither a call nor its result
_LONGEST = 4096  # tokens of a prompt
_WORDS = {"image": " What is in this picture? ", "audio": " What is to be heard? "}


def questions(tokenizer: Any, config: Any, folder: Path) -> list[Question]:
    """One question for each kind of medium that the checkpoint takes, of `_WORDS`.

    The picture has a size that neither Transformers nor llama.cpp changes, since they scale otherwise.

    Args:
        tokenizer: Its `media` is the checkpoint's processor.
        config: The whole model's.
        folder: Where the files are written.

    Raises:
        Unrenderable: The chat template has no place for media, as one of the user's own.
    """
    form = form_of(tokenizer)
    translates = isinstance(form, OwnForm) and form.translates
    found = []
    for kind in (kind for kind in _WORDS if kind in tokenizer.media.kinds):
        file = _picture(tokenizer, config, folder) if kind == "image" else _sound(folder)
        content = [{"type": kind, kind: str(file)}, {"type": "text", "text": _WORDS[kind]}]
        if translates:  # one part with its languages is all that it takes
            content = [content[0] | dict(zip(LANGUAGES, ("de", "en"), strict=True))]
        found.append(_question(tokenizer, [{"role": "user", "content": content}]))
    return found


def conversations_with_media(records: Iterable[Record]) -> Iterator[list[dict[str, Any]]]:
    """The prompts of rows with images or sound that a client asks by messages alone: no tools, no thinking."""
    for record in records:
        prompt = record.prompt
        kinds = {part["type"] for part in media_in(prompt)}
        plain = not record.tools and not record.thinking and all(m.keys() <= {*_PLAIN} for m in prompt)
        if kinds and kinds <= {*TAKEN} and plain:
            yield prompt


def questions_of(tokenizer: Any, conversations: Sequence[list[dict[str, Any]]]) -> list[Question]:
    """A question for each conversation that isn't longer than `_LONGEST` tokens."""
    found = (_question(tokenizer, messages) for messages in conversations)
    return [question for question in found if len(question.input_ids) <= _LONGEST]


def _question(tokenizer: Any, messages: list[dict[str, Any]]) -> Question:
    row = prompt_row(tokenizer, messages)
    return Question(messages, row.input_ids, tokenizer.media.pixel_inputs(row.media))


def _picture(tokenizer: Any, config: Any, folder: Path) -> Path:
    from PIL import Image

    file = folder / "picture.png"
    colours = np.random.RandomState(0).randint(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(colours).resize(_size(tokenizer, config), Image.Resampling.BICUBIC).save(file)
    return file


def _size(tokenizer: Any, config: Any) -> tuple[int, int]:
    """Width and height; of Gemma 4 the squares that become tokens fill nearly all that an image may have."""
    vision = config.vision_config
    if config.model_type == "gemma3":
        return vision.image_size, vision.image_size
    side, most = vision.patch_size * vision.pooling_kernel_size, tokenizer.media.most_image_tokens
    rows = isqrt(most)
    return most // rows * side, rows * side


def _sound(folder: Path) -> Path:
    """A rising tone in noise."""
    file, t = folder / "sound.wav", np.arange(_SECONDS * _RATE) / _RATE
    samples = 0.3 * np.sin(2 * np.pi * (300 + 200 * t) * t) + 0.05 * np.random.RandomState(0).randn(len(t))
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(_RATE)
        out.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return file
