"""An image, a sound or a video of a message, in the forms in which people write them, as a part that names a file.

A part is `{"type": "image", "image": "/absolute/path"}`, as chat templates of Transformers take it; `audio` and `video`
likewise. Bytes in a row are written to disk once, under their SHA-256. Nothing is decoded, and nothing downloaded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from gemma_tune.data.records import BadRow
from gemma_tune.data.row_fields import RowFields
from gemma_tune.data.scratch import no_room, scratch_folder
from gemma_tune.errors import quoted
from gemma_tune.media.files import check
from gemma_tune.media.kinds import KINDS, UnusableMedium, form_of

# The types of parts, by the kind of their medium: Transformers', OpenAI's, and those of its Responses
TYPES = {form.format(kind): kind for kind in KINDS for form in ("{}", "{}_url", "input_{}")}
_CONTENT = ("bytes", "data", "base64")
_NAMES = ("url", "uri", "path", "file_name")
_DESCRIBED = frozenset({"type", "format", "media_type", "mime_type", "mimeType", "filename"})  # said by the bytes
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
# The beginnings of PNG, JPEG, GIF, WebP or WAV, and Ogg or FLAC in base64, of a length that no name of a file has
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|T2dnUw|ZkxhQ)[A-Za-z0-9+/]{250}")

Note = Callable[[str, Any], None]


@dataclass(frozen=True)
class Checked:
    """A file that has been checked already, in the place of a medium.

    Attributes:
        path: Its absolute path.
    """

    path: str


def kind_of(part: Any) -> str | None:
    """The kind of medium that a part of a message is: image, audio or video; None for other parts."""
    if not isinstance(part, Mapping):
        return None
    said = part.get("type")
    if said is None:  # Qwen's `{"image": "a.png"}`
        return next((kind for kind in KINDS if part.get(kind) is not None), None)
    return TYPES.get(said) if isinstance(said, str) else None


def names_medium(part: Mapping[str, Any], kind: str) -> bool:
    """Whether a part says which medium it is; one that doesn't stands for the row's next one."""
    return any(part.get(key) is not None for key in _keys(kind))


def _keys(kind: str) -> tuple[str, ...]:
    return (kind, f"{kind}_url", f"input_{kind}", "source", "file", "file_id", *_CONTENT, *_NAMES)


def read_part(part: Mapping[str, Any], fields: RowFields, said: str, note: Note) -> dict[str, str]:
    """A part of a message that is a medium, with the path of its file.

    Args:
        part: As it was written, without nulls.
        fields: The row.
        said: Which message it is, for messages to the user.
        note: Is told each field of the part that isn't used, and its value.

    Raises:
        BadRow: It names no file, or one that can't be used.
    """
    kind = str(kind_of(part))
    key = next((key for key in _keys(kind) if part.get(key) is not None), None)
    if key is None:
        raise BadRow(
            f"{fields.where}: {said}: a part of the type {part['type']!r} names no file, and no field of the row holds "
            f"it; write {{'type': '{kind}', '{kind}': 'path'}}, or the paths in a field `{kind}s`."
        )
    for name in part.keys() - {"type", key}:
        note(f"content.{name}", part[name])
    value = part[key]
    if isinstance(value, Mapping):
        known = {*_CONTENT, *_NAMES, *_DESCRIBED, kind}
        for name in value.keys() - known:
            note(f"content.{key}.{name}", value[name])
    return {"type": kind, kind: path_of(value, kind, fields, f"{said}: {key}")}


def path_of(value: Any, kind: str, fields: RowFields, said: str) -> str:
    """The absolute path of a medium's file, which is checked by its header.

    Args:
        value: A path, `file://…`, a data URL, bytes, base64, or a mapping with one of these.
        kind: image, audio or video.
        fields: The row; relative paths are looked up in its `media_folder`.
        said: Where in the row it stands, for messages to the user.

    Raises:
        BadRow: It is none of these, or the file can't be used.
    """

    def refuse(reason: str) -> NoReturn:
        raise BadRow(f"{fields.where}: {said}: {reason}")

    fields.has_media = True
    if isinstance(value, Checked):
        return value.path
    hint = ""
    if isinstance(value, Mapping):
        kept = {key: v for key, v in value.items() if v is not None}
        key = next((key for key in (*_CONTENT, kind, *_NAMES) if key in kept), None)
        if key is None:
            refuse(f"holds no path and no bytes (its fields: {', '.join(map(str, value)) or 'none'}).")
        value = kept[key]
        if key in ("data", "base64") and isinstance(value, str):
            value = _decoded(value.partition(",")[2] if _DATA_URL.match(value) else value, refuse)
    if isinstance(value, str):
        if found := _DATA_URL.match(value):
            value = _decoded(value[found.end() :], refuse)
        elif _BASE64.match(value):
            value = _decoded(value, refuse)
    if isinstance(value, bytes | bytearray | memoryview):
        path, shown = stored(bytes(value)), "the bytes of it"
    elif isinstance(value, str) and value:
        path = _local(value, fields.media_folder, refuse)
        shown = path
        if path != value and not value.startswith("file:"):
            hint = " (data.media_folder says where relative paths are looked up)"
    else:
        refuse(f"is {type(value).__name__}, and must be the path of a file ({kind}): {quoted(value, 60)}.")
    try:
        check(path, kind)
    except UnusableMedium as error:
        missing = hint if "no such file" in error.reason else ""
        refuse(f"{shown}: {error.reason.removesuffix('.')}{missing}.")
    return path


def _local(name: str, folder: Path | None, refuse: Callable[[str], NoReturn]) -> str:
    """The absolute path of a name; no address of the network is one."""
    scheme = _SCHEME.match(name)
    if scheme and name.lower().startswith("file://"):
        parts = urlsplit(name)
        if parts.netloc not in ("", "localhost"):
            refuse(f"{name} lies on another machine; copy it here and name its path.")
        name = unquote(parts.path)
    elif scheme:
        refuse(f"{quoted(name)} is an address, and nothing is downloaded while training: fetch it and name its path.")
    elif name.startswith("data:"):
        refuse("this data URL isn't base64; write data:image/png;base64,… or the path of a file.")
    return os.path.abspath(os.path.join(folder or "", name))


def _decoded(text: str, refuse: Callable[[str], NoReturn]) -> bytes:
    try:
        plain = text if text.isascii() and text.isprintable() and " " not in text else "".join(text.split())
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        refuse(f"this isn't base64 ({error}).")


class _Store:
    """Files of the media that rows hold as bytes, in a folder that goes with the process."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def path(self, content: bytes) -> str:
        """The file with this content, which is written where it isn't there yet."""
        form = form_of(content[:32])
        name = hashlib.sha256(content).hexdigest() + (form.suffix if form else ".bin")
        try:
            self._folder = self._folder or scratch_folder()
            path = os.path.join(self._folder.name, name)
            if not os.path.exists(path):
                # Under another name first: other threads may write the same
                with tempfile.NamedTemporaryFile(dir=self._folder.name, delete=False) as file:
                    file.write(content)
                os.replace(file.name, path)
        except OSError as error:
            raise no_room("media of rows", error) from error
        return path

    def holds(self, path: str) -> bool:
        """Whether a file lies there."""
        return self._folder is not None and os.path.dirname(path) == self._folder.name


_STORE = _Store()
stored, is_stored = _STORE.path, _STORE.holds


def without_bytes(value: Any) -> Any:
    """A row without the bytes of its media, for rewards: the paths of their files stand in their places."""
    if isinstance(value, bytes | bytearray):
        return stored(bytes(value))
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes | bytearray):
            return {**{k: v for k, v in value.items() if k != "bytes"}, "path": stored(bytes(value["bytes"]))}
        return {key: without_bytes(v) for key, v in value.items()}
    return [without_bytes(v) for v in value] if isinstance(value, list) else value
