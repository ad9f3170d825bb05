"""Small files of images and sound, as tests need them."""

from __future__ import annotations

import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, width: int = 12, height: int = 8, form: str | None = None, **keys: Any) -> Path:
    """An image whose left half is red and whose right half is blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    Image.fromarray(pixels).save(path, form, **keys)
    return path


def sound(path: Path, seconds: float = 0.5, rate: int = 8000, channels: int = 1) -> Path:
    """A wave of 440 Hz as 16-bit WAV."""
    t = np.arange(round(seconds * rate)) / rate
    samples = np.repeat((np.sin(2 * np.pi * 440 * t) * 20000).astype("<i2")[:, None], channels, axis=1)
    with wave.open(str(path), "wb") as out:
        out.setparams((channels, 2, rate, 0, "NONE", ""))
        out.writeframes(samples.tobytes())
    return path


def huge(path: Path, width: int, height: int) -> Path:
    """A PNG of some bytes whose header names a size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path
