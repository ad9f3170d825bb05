"""Pictures, sounds, and conversations with them, at random."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np

_WORDS = ("What is it?", "Deux chats.", "\nRead it.\n", "谢谢", "\n\nAnd this one?\n\n", "👍🏽 ok", " a", "1\n2", "…")


def picture(folder: Path, width: int, height: int, seed: int = 0) -> str:
    """A picture of that size, as a PNG file."""
    from PIL import Image

    file = folder / f"{width}x{height}_{seed}.png"
    if not file.exists():
        small = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(file)
    return str(file)


def sound(folder: Path, samples: int, rate: int = 16_000) -> str:
    """A sound of so many samples, as a WAV file."""
    import soundfile

    file = folder / f"{samples}_{rate}.wav"
    if not file.exists():
        noise = np.random.default_rng(samples).normal(0, 0.1, samples).astype("float32")
        soundfile.write(file, noise, rate)
    return str(file)


def film(folder: Path, frames: int, rate: int, width: int = 96, height: int = 64) -> str:
    """A video of so many frames."""
    import av

    file = folder / f"{frames}_{rate}_{width}x{height}.mkv"
    if not file.exists():
        random = np.random.default_rng(frames)
        with av.open(str(file), "w") as opened:
            stream = opened.add_stream("ffv1", rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "bgra"
            for _ in range(frames):
                shown = np.repeat(np.repeat(random.integers(0, 255, (8, 12, 3), dtype=np.uint8), 8, 0), 8, 1)
                opened.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24").reformat(width, height)))
            opened.mux(stream.encode(None))
    return str(file)


def conversation(random: Random, media: Any, turns: int = 3) -> list[dict[str, Any]]:
    """A conversation of several turns, whose user parts are texts and media in any order; the last one answers.

    Args:
        random: Where the numbers come from.
        media: Gives a part for a medium, given `random`.
        turns: The most turns of the user.
    """
    messages: list[dict[str, Any]] = []
    if random.random() < 0.3:
        messages.append({"role": "system", "content": random.choice(_WORDS)})
    for _ in range(random.randint(1, turns)):
        parts: list[dict[str, Any]] = []
        for _ in range(random.randint(1, 4)):
            if random.random() < 0.5:
                parts.append(media(random))
            else:
                parts.append({"type": "text", "text": random.choice(_WORDS)})
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": random.choice(_WORDS)})
    return messages
