"""Files of images, sound and video: what their headers say, and their content when it is needed.

The functions that `check` calls read headers only, a fraction of a millisecond each, and refuse what would take more
memory than any training needs before it is decoded. The form of a file is told from its first bytes, and only readers
of known forms are asked, so that no file can name another file or an address to read.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_tune.errors import UserError, first_line
from gemma_tune.media.kinds import Form, form_of_file
from gemma_tune.media.kinds import UnusableMedium as UnusableMedium

# Pixels of an image or a frame (Pillow warns from there on; 270 MB decoded), samples of a sound for each of its
# channels (93 minutes at 48 kHz; 1 GiB as float32), hours of a video
MAX_PIXELS, MAX_SAMPLES, MAX_HOURS = 89_478_485, 1 << 28, 4
_BLOCK = 1 << 18  # samples that are read at once
_TAIL = 512  # bytes at a file's end in which its last mark stands
_DEEP = ("I", "F")  # modes of Pillow with more than 8 bits, whose conversion to RGB cuts off all above 255


@dataclass(frozen=True)
class VideoInfo:
    """What the header of a video says.

    Attributes:
        width: In pixels, as stored.
        height: In pixels, as stored.
        frames: Number of frames.
        seconds: Its length.
        rate: Frames a second, on average.
    """

    width: int
    height: int
    frames: int
    seconds: float
    rate: float


def check(path: str | Path, kind: str) -> None:
    """Checks a file by its header and its end, without decoding it.

    Args:
        path: The file.
        kind: What it must be: image, audio or video.

    Raises:
        UnusableMedium: It isn't there, isn't of this kind, is broken or cut off, or is too large.
        UserError: A package is missing that reads it.
    """
    if kind == "image":
        image_size(path)
        if not _has_its_end(path, form_of_file(path, kind)):
            open_image(path)  # only decoding tells whether something is missing
    elif kind == "audio":
        audio_seconds(path)
        if not _has_its_end(path, form_of_file(path, kind)):
            raise UnusableMedium(path, "it is cut off: its header says more bytes than it has; copy it again.")
    else:
        video_info(path)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image in pixels, as it is shown (EXIF orientation applied), from its header.

    Raises:
        UnusableMedium: As `check`.
    """
    with _image(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def open_image(path: str | Path, side: int = 0) -> Any:
    """An image as a `PIL.Image.Image` in RGB, as it is shown; of an animation the first frame.

    Transparency is left out, as by the image processors of Transformers.

    Args:
        path: The file.
        side: Pixels of both sides that suffice: a larger JPEG is decoded at a part of its size, which is faster.

    Raises:
        UnusableMedium: As `check`.
    """
    from PIL import Image

    turns = Image.Transpose
    methods = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
        6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90,
    }  # fmt: skip
    with _image(path) as image:
        orientation = _orientation(image)  # before its content is read, as `image_size` does
        if side:
            image.draft("RGB", (side, side))
        image.load()
        shown = image.convert("RGB")
        return shown.transpose(methods[orientation]) if orientation in methods else shown


def is_plain_image(path: str | Path) -> bool:
    """Whether any reader makes of an image what `open_image` does: a PNG or JPEG, opaque, 8 bits, not to be turned.

    Raises:
        UnusableMedium: As `check`.
    """
    with _image(path) as image:
        opaque = image.mode in ("RGB", "L") and "transparency" not in image.info
        return image.format in ("PNG", "JPEG") and opaque and _orientation(image) == 1


def audio_seconds(path: str | Path) -> float:
    """The length of a sound in seconds, from its header.

    Raises:
        UnusableMedium: As `check`.
        UserError: soundfile isn't installed.
    """
    with _sound(path) as sound:
        return float(sound.frames / sound.samplerate)


def audio_samples(path: str | Path, rate: int) -> int:
    """The number of samples that `read_audio` gives, from the header.

    Raises:
        UnusableMedium: As `check`.
        UserError: soundfile isn't installed.
    """
    with _sound(path) as sound:
        return _resampled(sound.frames, sound.samplerate, rate)


def read_audio(path: str | Path, rate: int) -> Any:
    """A sound as float32 samples of one channel, [samples] between -1 and 1; several channels are averaged.

    Args:
        path: The file.
        rate: Samples a second.

    Raises:
        UnusableMedium: As `check`, or its content is broken.
        UserError: soundfile or soxr isn't installed.
    """
    import numpy as np

    with _sound(path) as sound:
        frames, own = sound.frames, sound.samplerate
        blocks = [block.mean(axis=1) for block in sound.blocks(_BLOCK, dtype="float32", always_2d=True)]
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if len(samples) != frames:
        raise UnusableMedium(path, f"it is broken or cut off: it has {len(samples):,} of {frames:,} samples.")
    if not np.isfinite(samples).all():
        raise UnusableMedium(path, "it is broken: some of its samples are NaN or infinite.")
    if own != rate:
        samples = import_reader("soxr", "audio", "sound").resample(samples, own, rate)
        count = _resampled(frames, own, rate)
        samples = np.pad(samples[:count], (0, max(0, count - len(samples))))
    return samples.astype(np.float32, copy=False)


def _resampled(frames: int, own: int, rate: int) -> int:
    return math.floor(frames * rate / own + 0.5)


def video_info(path: str | Path) -> VideoInfo:
    """Size, frames and length of a video, from its header.

    Raises:
        UnusableMedium: As `check`.
        UserError: av isn't installed.
    """
    form = form_of_file(path, "video")
    av = import_reader("av", "video", "video")
    with reading(path), av.open(str(path), format=form.reader, metadata_errors="ignore") as opened:
        if not opened.streams.video:
            raise UnusableMedium(path, "it has no pictures; give sound as audio.")
        stream = opened.streams.video[0]
        length = stream.duration * stream.time_base if stream.duration else (opened.duration or 0) / av.time_base
        frames = stream.frames or round(length * (stream.average_rate or 0))
        rate = float(stream.average_rate or (frames / length if length else 0))
        info = VideoInfo(stream.codec_context.width, stream.codec_context.height, frames, float(length), rate)
    if info.frames < 1 or info.seconds <= 0 or info.width < 1 or info.height < 1:
        raise UnusableMedium(path, "its header says no size or no length; write it anew: ffmpeg -i old.webm new.mp4")
    refuse_large(path, info.width, info.height)
    if info.seconds > MAX_HOURS * 3600:
        raise UnusableMedium(path, f"it lasts {info.seconds / 3600:.1f} hours, and at most {MAX_HOURS} are read.")
    return info


@contextmanager
def _image(path: str | Path) -> Iterator[Any]:
    """An image whose header is read, and whose size is allowed."""
    form = form_of_file(path, "image")
    from PIL import Image

    Image.init()
    if form.reader not in Image.OPEN:
        raise UnusableMedium(path, f"{form.name} can't be read here; save it as PNG or JPEG.")
    with reading(path), open(path, "rb") as file, warnings.catch_warnings():
        # What Pillow warns of is refused below, or is a tag that nobody reads
        warnings.simplefilter("ignore")
        with Image.open(file, formats=(form.reader,)) as image:
            refuse_large(path, *image.size)
            if image.mode.partition(";")[0] in _DEEP:
                raise UnusableMedium(
                    path,
                    f"it has more than 8 bits a value (Pillow's mode {image.mode}), and which of them matter is yours "
                    "to say: save it with 8 bits.",
                )
            yield image


def refuse_large(path: str | Path, width: int, height: int) -> None:
    """Raises UnusableMedium for more pixels than are decoded, or none."""
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise UnusableMedium(
            path, f"it has {width:,} × {height:,} pixels, more than {MAX_PIXELS:,} or none; make it smaller."
        )


def _orientation(image: Any) -> int:
    """The EXIF orientation that is still to be applied, 1 for none; Pillow applies that of a TIFF by itself."""
    if image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block may raise anything, and says nothing
        return 1


@contextmanager
def _sound(path: str | Path) -> Iterator[Any]:
    """A sound whose header is read, and whose length is allowed."""
    form = form_of_file(path, "audio")
    soundfile = import_reader("soundfile", "audio", "sound")
    with reading(path), soundfile.SoundFile(str(path)) as sound:
        if sound.frames < 1:
            raise UnusableMedium(path, f"it holds no sound ({form.name} without samples).")
        if sound.frames > MAX_SAMPLES:
            raise UnusableMedium(
                path, f"it has {sound.frames:,} samples, and at most {MAX_SAMPLES:,} are read; cut it."
            )
        yield sound


def _has_its_end(path: str | Path, form: Form) -> bool:
    """Whether a file has what ends its form, as far as that can be seen without decoding it."""
    with open(path, "rb") as file:
        head = file.read(12)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    said = int.from_bytes(head[4:8], "little")
    marks: dict[str, Callable[[], bool]] = {
        "PNG": lambda: b"IEND" in tail,
        "JPEG": lambda: b"\xff\xd9" in tail,
        "GIF": lambda: tail.rstrip(b"\0").endswith(b";"),
        "WebP": lambda: said + 8 <= size + 1,  # some writers leave the last padding byte out
        "WAV": lambda: head[:4] != b"RIFF" or said in (0, 0xFFFFFFFF) or said + 8 <= size + 1,  # 0 and all: a stream
    }
    return marks.get(form.name, lambda: True)()


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """What a reader raises on a broken file, which may be any exception, as `UnusableMedium`."""
    try:
        yield
    except (UnusableMedium, UserError):
        raise
    except Exception as error:
        if type(error).__name__ == "DecompressionBombError":  # Pillow's, of twice as many pixels
            raise UnusableMedium(path, f"it has more than {MAX_PIXELS:,} pixels; make it smaller.") from error
        said = (getattr(error, "strerror", None) or first_line(error)).replace(f" {str(path)!r}", "").rstrip(".")
        raise UnusableMedium(path, f"it is broken or cut off ({said}); copy it again.") from error


def import_reader(name: str, extra: str, what: str) -> Any:
    """The package that reads `what`, which an extra of ours installs; UserError where it can't be imported."""
    import importlib

    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: its library isn't there
        raise UserError(
            f"{what} needs the package {name}, which can't be imported: pip install 'gemma_tune[{extra}]'"
        ) from error
