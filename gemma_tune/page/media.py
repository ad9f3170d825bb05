"""Images, sounds and videos on a page: small pictures and players, inside the page itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gemma_tune.errors import UserError, shortened
from gemma_tune.media.encoded import data_url, thumbnail
from gemma_tune.media.files import UnusableMedium, audio_seconds, image_size, video_info
from gemma_tune.media.kinds import KINDS, form_of_file, shown_name
from gemma_tune.page.text import escaped

_SIDE = 200  # pixels of a picture at most
_MOST = 48  # media that a page shows; the others are named
_FORMS = ("WAV", "FLAC", "Ogg", "MP3", "M4A", "MP4 or MOV", "Matroska or WebM")  # that browsers play
_PLAYED = 512 << 10  # bytes of a file that a page plays
_NAME = 80  # characters of a name at most
_ALL = 6 << 20  # characters of all of them


class Medium(NamedTuple):
    """An image, a sound or a video.

    Attributes:
        kind: image, audio or video.
        name: Of its file.
        facts: About it, a few words each.
        source: What a page shows or plays of it, as a data URL; empty where it is only named.
        size: Width and height of the picture, in pixels.
    """

    kind: str
    name: str
    facts: Sequence[str] = ()
    source: str = ""
    size: tuple[int, int] = (0, 0)

    @property
    def title(self) -> str:
        """`image meter.png`."""
        return f"{self.kind} {self.name}"


class Gallery:
    """The media of one page: the first dozens are shown and played, so that it stays small.

    Args:
        most: How many; 0: all are only named, and no file is opened.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._left, self._room, self._shows = most, _ALL, most > 0
        self._known: dict[tuple[str, str], Medium] = {}

    def media(self, entries: Any) -> list[Medium]:
        """Media that a row names: each its `kind` and `path`, perhaps `tokens`. What is none is left out."""
        found = [e for e in entries if isinstance(e, Mapping)] if isinstance(entries, list) else []
        return [self._medium(e) for e in found if e.get("kind") in KINDS and isinstance(e.get("path"), str)]

    def _medium(self, entry: Mapping[str, Any]) -> Medium:
        kind, path = entry["kind"], entry["path"]
        facts = [f"{entry['tokens']:,} tokens"] if isinstance(entry.get("tokens"), int) else []
        name = shortened(shown_name(path), _NAME)
        if not self._shows:
            return Medium(kind, name, facts)
        if (kind, path) not in self._known:
            try:
                self._known[kind, path] = self._looked_at(kind, path)
            except UnusableMedium:
                self._known[kind, path] = Medium(kind, "", ["the file isn't there any more, or is another one"])
            except UserError:  # a package is missing, without which it was measured elsewhere
                self._known[kind, path] = Medium(kind, "")
        seen = self._known[kind, path]
        shown = self._left > 0 and len(seen.source) <= self._room
        if seen.source and shown:
            self._left, self._room = self._left - 1, self._room - len(seen.source)
        return seen._replace(name=name, facts=[*facts, *seen.facts], source=seen.source if shown else "")

    def _looked_at(self, kind: str, path: str) -> Medium:
        """What its header says, and what is shown of it where there is still room."""
        played = _is_played(path, kind)
        if kind == "image":
            width, height = image_size(path)
            facts = [f"{width:,} × {height:,} pixels"]
        elif kind == "audio":
            facts = [f"{audio_seconds(path):.1f} seconds"]
        else:
            info = video_info(path)
            facts = [f"{info.seconds:.1f} seconds", f"{info.width:,} × {info.height:,} pixels"]
        if self._left <= 0 or (kind == "audio" and not played):
            return Medium(kind, "", facts)
        if played:
            return Medium(kind, "", facts, data_url(path, kind))
        source, *size = thumbnail(path, kind, _SIDE)
        return Medium(kind, "", facts, source, (size[0], size[1]))


def _is_played(path: str, kind: str) -> bool:
    """Whether a page plays a file: a small one of a form that browsers know."""
    if kind == "image" or form_of_file(path, kind).name not in _FORMS or os.path.getsize(path) > _PLAYED:
        return False
    return kind == "audio" or path.lower().endswith((".mp4", ".webm"))


def media_figures(media: Sequence[Medium]) -> str:
    """Media side by side, each with its name and facts below it; nothing without any."""
    return f'<div class="media">{"".join(map(_figure, media))}</div>' if media else ""


def _figure(medium: Medium) -> str:
    facts = "".join(f"<small>{escaped(fact)}</small>" for fact in medium.facts)
    return f"<figure>{_shown(medium)}<figcaption>{escaped(medium.title)}{facts}</figcaption></figure>"


def _shown(medium: Medium) -> str:
    """The picture or the player. Its source is of our making, base64 behind a type that we name."""
    if not medium.source:
        return ""
    if medium.source.startswith("data:image/"):
        width, height = medium.size
        return f'<img src="{medium.source}" width="{width}" height="{height}" alt="{escaped(medium.title)}">'
    tag = "audio" if medium.kind == "audio" else "video"
    return f'<{tag} controls preload="metadata" src="{medium.source}"></{tag}>'
