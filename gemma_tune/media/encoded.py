"""Media as text: as a client sends them to a server, and small ones for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_tune.media.files import import_reader, is_plain_image, open_image, read_audio
from gemma_tune.media.frames import read_frames
from gemma_tune.media.kinds import Form, form_of_file

# By the suffix of a form, of those that are not written `kind/suffix`; WebM is Matroska, and the one that is played
_TYPES = {
    ".jpg": "image/jpeg", ".tif": "image/tiff", ".mp3": "audio/mpeg", ".m4a": "audio/mp4", ".mkv": "video/webm",
    ".avi": "video/x-msvideo", ".mpg": "video/mpeg",
}  # fmt: skip
_SENT = {"WAV": "wav", "MP3": "mp3"}  # the forms of sound that OpenAI's API and llama.cpp take
_RATE = 16_000  # samples a second of other forms: what towers hear
_QUALITY = 82  # of JPEG


def as_sent(part: Mapping[str, Any]) -> dict[str, Any]:
    """A medium of a message as a client sends it to an OpenAI-compatible server; other parts as they are.

    Images that readers take differently (EXIF orientation, transparency, other forms than PNG and JPEG) are sent as a
    PNG of what the model is trained on, and other forms of sound than WAV and MP3 as a WAV of 16 bit.

    Args:
        part: `{"type": "image", "image": path}`; `audio` and `video` likewise. A video becomes vLLM's `video_url`.

    Raises:
        UnusableMedium: The file can't be used.
        UserError: A package is missing that reads it.
    """
    kind = part.get("type")
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": _image_url(part["image"])}}
    if kind == "audio":
        data, name = _sound(part["audio"])
        return {"type": "input_audio", "input_audio": {"data": _base64(data), "format": name}}
    if kind == "video":
        return {"type": "video_url", "video_url": {"url": data_url(part["video"], "video")}}
    return dict(part)


def data_url(path: str | Path, kind: str) -> str:
    """A file as a data URL, byte by byte.

    Raises:
        UnusableMedium: It isn't there, or is of another kind.
    """
    return _url(Path(path).read_bytes(), _type(form_of_file(path, kind)))


def thumbnail(path: str | Path, kind: str, side: int) -> tuple[str, int, int]:
    """A small picture of an image, or of the first frame of a video, as a data URL; with its width and height.

    It is a JPEG or a PNG, whichever is shorter, of at most `side` pixels in each direction.

    Raises:
        UnusableMedium: The file can't be used.
        UserError: A package is missing that reads it.
    """
    picture = open_image(path, side) if kind == "image" else read_frames(path, [0])[0]
    if max(picture.size) > side:
        picture.thumbnail((side, side))
    found = [(_written(picture, "PNG", optimize=True), "image/png")]
    found.append((_written(picture, "JPEG", quality=_QUALITY), "image/jpeg"))
    return _url(*min(found, key=lambda one: len(one[0]))), *picture.size


def _image_url(path: str) -> str:
    if is_plain_image(path):
        return data_url(path, "image")
    return _url(_written(open_image(path), "PNG"), "image/png")


def _sound(path: str) -> tuple[bytes, str]:
    """The bytes of a sound, and their form as OpenAI names it."""
    form = form_of_file(path, "audio")
    if form.name in _SENT:
        return Path(path).read_bytes(), _SENT[form.name]
    out = io.BytesIO()
    samples = read_audio(path, _RATE)
    import_reader("soundfile", "audio", "sound").write(out, samples, _RATE, format="WAV", subtype="PCM_16")
    return out.getvalue(), "wav"


def _written(picture: Any, form: str, **keys: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **keys)
    return out.getvalue()


def _type(form: Form) -> str:
    return _TYPES.get(form.suffix, f"{form.kind}/{form.suffix.removeprefix('.')}")


def _url(content: bytes, name: str) -> str:
    return f"data:{name};base64,{_base64(content)}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
