"""What a file holds, by its first bytes: its name may say anything."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from gemma_tune.errors import shortened

KINDS = ("image", "audio", "video")
MAX_BYTES = 256 << 20  # of an image's file
_DIGEST = re.compile(r"^([0-9a-f]{8})[0-9a-f]{56}(?=\.)")
_BEGINNING = 32  # bytes that are looked at
WORDS = {"image": "an image", "audio": "sound", "video": "a video"}
SEVERAL = {"image": "images", "audio": "sound", "video": "videos"}
_COMMON = {"image": "PNG or JPEG", "audio": "WAV, FLAC or MP3", "video": "MP4"}


class UnusableMedium(ValueError):
    """A file that can't be used as an image, as sound or as a video.

    Args:
        path: The file.
        reason: Why, and what to do, as the end of a sentence.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{shortened(str(path))}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process."""
        return type(self), (self.path, self.reason)


class Form(NamedTuple):
    """A form of files.

    Attributes:
        kind: image, audio or video.
        name: As people write it.
        reader: Name of its reader: Pillow's of an image, FFmpeg's of a video; "" for sound, and for what can't be read.
        suffix: Of a file's name.
    """

    kind: str
    name: str
    reader: str
    suffix: str


# The first bytes by form; the first that fits. `ftyp` names what an MP4's family of files holds.
_FORMS = (
    (rb"\x89PNG\r\n\x1a\n", Form("image", "PNG", "PNG", ".png")),
    (rb"\xff\xd8\xff", Form("image", "JPEG", "JPEG", ".jpg")),
    (rb"GIF8[79]a", Form("image", "GIF", "GIF", ".gif")),
    (rb"RIFF....WEBP", Form("image", "WebP", "WEBP", ".webp")),
    (rb"(?:II\*\0|MM\0\*)", Form("image", "TIFF", "TIFF", ".tif")),
    (rb"BM.{4}\0\0\0\0", Form("image", "BMP", "BMP", ".bmp")),
    (rb"P[1-6]\s", Form("image", "PPM", "PPM", ".ppm")),
    (rb"....ftypavi[fs]", Form("image", "AVIF", "AVIF", ".avif")),
    (rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", Form("image", "HEIC", "", ".heic")),
    (rb"(?:RIFF|RF64)....WAVE", Form("audio", "WAV", "", ".wav")),
    (rb"fLaC", Form("audio", "FLAC", "", ".flac")),
    (rb"OggS", Form("audio", "Ogg", "", ".ogg")),
    (rb"FORM....AIF[FC]", Form("audio", "AIFF", "", ".aiff")),
    (rb"ID3", Form("audio", "MP3", "", ".mp3")),
    (rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", Form("audio", "MP3", "", ".mp3")),
    (rb"....ftypM4[AB]", Form("audio", "M4A", "", ".m4a")),
    (rb"....(?:ftyp|moov|wide)", Form("video", "MP4 or MOV", "mov", ".mp4")),
    (rb"\x1aE\xdf\xa3", Form("video", "Matroska or WebM", "matroska", ".mkv")),
    (rb"RIFF....AVI ", Form("video", "AVI", "avi", ".avi")),
    (rb"\0\0\x01\xba", Form("video", "MPEG", "mpeg", ".mpg")),
)  # fmt: skip
_PATTERNS = [(re.compile(pattern, re.DOTALL), form) for pattern, form in _FORMS]


def shown_name(path: str | Path) -> str:
    """The name of a medium's file for people; of a SHA-256, by which bytes of rows are named, the beginning."""
    return _DIGEST.sub(r"\1…", os.path.basename(str(path)))


def form_of(beginning: bytes) -> Form | None:
    """The form of the file that begins so; None for one that is not known here."""
    return next((form for pattern, form in _PATTERNS if pattern.match(beginning)), None)


def form_of_file(path: str | Path, kind: str) -> Form:
    """The form of a regular file of a kind, by its first bytes.

    Args:
        path: The file.
        kind: What it must be.

    Raises:
        UnusableMedium: It isn't there, can't be read, or is of another kind or of no known form.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # before it is opened: a pipe would block
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UnusableMedium(path, f"this is {what}; name {WORDS[kind]}.")
        with open(path, "rb") as file:
            beginning = file.read(_BEGINNING)
    except UnusableMedium:
        raise
    except FileNotFoundError:
        raise UnusableMedium(path, "there is no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in a name
        reason = getattr(error, "strerror", None) or error
        raise UnusableMedium(path, f"the file can't be read ({reason}).") from error
    if not beginning:
        raise UnusableMedium(path, "the file is empty; copy it again.")
    form = form_of(beginning)
    if form is None:
        pointer = "this is a pointer of Git LFS: fetch the file (git lfs pull)"
        way = pointer if beginning[:7] == b"version" else f"save it as {_COMMON[kind]}"
        raise UnusableMedium(path, f"this is not {WORDS[kind]} of a known form (by its first bytes); {way}.")
    if form.kind != kind:
        raise UnusableMedium(path, f"this is {WORDS[form.kind]} ({form.name}), and {WORDS[kind]} must stand here.")
    if kind == "image" and status.st_size > MAX_BYTES:
        raise UnusableMedium(
            path, f"the file has {status.st_size >> 20:,} MiB, and at most {MAX_BYTES >> 20} are read."
        )
    return form
