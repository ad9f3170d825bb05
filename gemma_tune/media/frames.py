"""Decodes frames of a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_tune.media.files import import_reader, reading, refuse_large, video_info
from gemma_tune.media.kinds import UnusableMedium, form_of_file


def read_frames(path: str | Path, places: Sequence[int]) -> list[Any]:
    """Frames of a video as `PIL.Image.Image` in RGB, at rising places counted from 0.

    Raises:
        UnusableMedium: As `check`, or it has fewer frames than its header says.
        UserError: av isn't installed.
    """
    info, wanted, found = video_info(path), set(places), []
    av = import_reader("av", "video", "video")
    with (
        reading(path),
        av.open(str(path), format=form_of_file(path, "video").reader, metadata_errors="ignore") as opened,
    ):
        for place, frame in enumerate(opened.decode(video=0)):
            if place in wanted:
                refuse_large(path, frame.width, frame.height)
                found.append(frame.to_image())
            if len(found) == len(places):
                return found
    raise UnusableMedium(path, f"it is broken or cut off: it has fewer frames than the {info.frames:,} of its header.")
