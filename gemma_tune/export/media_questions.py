"""Questions with a picture and a sound of our own making, for the check of an mmproj file."""

from __future__ import annotations

import wave
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from gemma_tune.chat.render import prompt_row
from gemma_tune.export.media_check import Question

_RATE, _SECONDS = 16_000, 2
_WORDS = {"image": " What is in this picture? ", "audio": " What is to be heard? "}


def questions(tokenizer: Any, config: Any, folder: Path) -> list[Question]:
    """One question for each kind of medium that the checkpoint takes, of `_WORDS`.

    The picture has a size that neither Transformers nor llama.cpp changes, since they scale otherwise.

    Args:
        tokenizer: Its `media` is the checkpoint's processor.
        config: The whole model's.
        folder: Where the files are written.
    """
    found = []
    for kind in (kind for kind in _WORDS if kind in tokenizer.media.kinds):
        file = _picture(tokenizer, config, folder) if kind == "image" else _sound(folder)
        content = [{"type": kind, kind: str(file)}, {"type": "text", "text": _WORDS[kind]}]
        messages = [{"role": "user", "content": content}]
        row = prompt_row(tokenizer, messages)
        found.append(Question(messages, row.input_ids, tokenizer.media.pixel_inputs(row.media)))
    return found


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
