"""Media that stand in fields beside a conversation, and the places in its texts where they belong.

A place is `<image>`, `<audio>` or `<video>` in a text, as LLaVA and LLaMA-Factory write it, or a part without a medium,
`{"type": "image"}`, as TRL and Transformers do. There must be one for each medium; only where there is none at all, and
one message of the user's, the media stand at its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_tune.data.known_fields import IGNORE, MEDIA
from gemma_tune.data.media_parts import Checked, kind_of, names_medium, path_of
from gemma_tune.data.records import BadRow
from gemma_tune.data.row_fields import RowFields, is_empty, structure_in
from gemma_tune.media.kinds import KINDS

_HOLD = ("user", "tool")  # the roles whose messages can hold media
_CONTENT = ("content", "value", "parts", "text")
_TEXTS = (None, "text", "input_text", "output_text")
# Of the `metadata.jsonl` of a folder, as `datasets` reads it, its field with the file, and the kinds of such files
_FILE_NAME = "file_name"
_SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".avif"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus"),
    "video": (".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
}

_LONGEST, _SUFFIX = 1000, 8  # characters of a path, and of its end as far as it is looked at
_KNOWN = frozenset({*MEDIA, _FILE_NAME})

Media = dict[str, tuple[str, list[dict[str, Any]]]]  # by kind: the field, and its media as parts


def row_media(fields: RowFields) -> Media:
    """The media in the fields of a row; a kind whose field the row has, but empty, has an empty list.

    Raises:
        BadRow: A file can't be used, or two fields hold one kind.
    """
    if not fields.scopes and fields.row.keys().isdisjoint(_KNOWN):  # most rows
        return {}
    found: Media = {}
    for kind in KINDS:
        known = [name for name, said in MEDIA.items() if said == kind]
        given = fields.named(known)
        if not given:
            if empty := next((name for name in known if name in fields.row and not fields.is_ignored(name)), None):
                found[kind] = (empty, [])
            continue
        if len(given) > 1:
            raise BadRow(
                f"{fields.where}: the fields {given[0]!r} and {given[1]!r} both hold media ({kind}); keep one "
                f"(data.ignore_fields=[{given[1]}])."
            )
        found[kind] = (given[0], _parts(fields.get(given[0]), kind, fields, given[0]))
    if not any(parts for _, parts in found.values()):
        found |= _file_of_metadata(fields)
    return found


def message_media(message: Mapping[str, Any], fields: RowFields, name: str, said: str) -> Media:
    """The same in the fields of a message.

    Args:
        message: Its fields, without nulls and those that are ignored.
        fields: The row.
        name: The field of the conversation.
        said: Which message it is.

    Raises:
        BadRow: A file can't be used.
    """
    found: Media = {}
    for key, kind in MEDIA.items():
        if not is_empty(message.get(key)):
            found[kind] = (key, _parts(message[key], kind, fields, f"{name}.{key}", f"{said}: "))
    return found


def _file_of_metadata(fields: RowFields) -> Media:
    place, name = Path(fields.where.rpartition(":")[0]), fields.peek(_FILE_NAME)
    if not place.name.startswith("metadata.") or not isinstance(name, str) or fields.is_ignored(_FILE_NAME):
        return {}
    kind = _kind_of_name(name)
    return {kind: (_FILE_NAME, _parts(fields.get(_FILE_NAME), kind, fields, _FILE_NAME))} if kind else {}


def _kind_of_name(name: str) -> str | None:
    end = name[-_SUFFIX:].lower()
    return next((kind for kind, ends in _SUFFIXES.items() if end.endswith(ends)), None)


def _parts(value: Any, kind: str, fields: RowFields, name: str, said: str = "") -> list[dict[str, Any]]:
    given = structure_in(value)
    several = isinstance(given, list)
    parts = []
    for place, one in enumerate(given if several else [given]):
        field = f"{name}.{place}" if several else name
        try:
            parts.append({"type": kind, kind: Checked(path_of(one, kind, fields, f"{said}the field {field!r}"))})
        except BadRow as error:
            raise BadRow(f"{error}{IGNORE}") from error
    return parts


def with_media(fields: RowFields, media: Media, messages: Any) -> Any:
    """The messages with the media of the row in their places.

    Args:
        fields: The row.
        media: Its media.
        messages: The conversation as `messages.plain` gives it.

    Raises:
        BadRow: There are not as many places as media, or nothing says where they belong.
    """
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return messages
    if not media:
        _refuse_lost(fields, messages)
        return messages
    keys = [next((key for key in _CONTENT if m.get(key) is not None), "content") for m in messages]
    holding = [i for i, m in enumerate(messages) if m.get("role") in _HOLD]
    others = [m.get(key) for i, (m, key) in enumerate(zip(messages, keys, strict=True)) if i not in holding]
    users = [holding.index(i) for i in holding if messages[i]["role"] == "user"]
    contents = placed([messages[i].get(keys[i]) for i in holding], media, fields.where, users, others)
    made = list(messages)
    for i, content in zip(holding, contents, strict=True):
        if content is not None:
            made[i] = {**messages[i], keys[i]: content}
    return made


def _refuse_lost(fields: RowFields, messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuses places of media that aren't read, as ignored or under an unknown name: `<image>` would become text."""
    texts = [m.get(key) for m in messages for key in _CONTENT if key in m]
    for name, value in fields.row.items():
        one = value[0] if isinstance(value, list) and value else value
        kind = _kind_of_name(one) if isinstance(one, str) and len(one) < _LONGEST else None
        if kind and name not in MEDIA and not fields.is_ignored(name) and any(f"<{kind}>" in t for t in _texts(texts)):
            raise BadRow(
                f"{fields.where}: the texts hold <{kind}>, and what the field {name!r} names isn't read: call it "
                f"{kind!r}, or take <{kind}> out of the texts.{IGNORE}"
            )
    if not fields.ignores:
        return
    for name, kind in MEDIA.items():
        given = not is_empty(fields.row.get(name)) and fields.is_ignored(name)
        if given and (count := sum(text.count(f"<{kind}>") for text in _texts(texts))):
            raise BadRow(
                f"{fields.where}: data.ignore_fields has {name!r}, and the texts still hold <{kind}> ({count} ×), "
                "which would be trained as text: take it out of them, or read the field."
            )


def placed(
    contents: Sequence[Any], media: Media, where: str, users: Sequence[int], others: Sequence[Any] = ()
) -> list[Any]:
    """The contents of messages with media in their places.

    Args:
        contents: Of the messages that can hold media, in order.
        media: What is to be placed.
        where: File and line.
        users: Which of the contents are the user's.
        others: The contents of the other messages, to say where places stand that can't be filled.

    Raises:
        BadRow: As `with_media`.
    """
    made, front = list(contents), []
    for kind, (name, parts) in media.items():
        empty = sum(_is_place(part, kind) for content in contents for part in _listed(content))
        marks = sum(text.count(f"<{kind}>") for text in _texts(contents))
        if empty or marks or any(f"<{kind}>" in text for text in _texts(others)):
            count, form = (empty, f"{{'type': '{kind}'}}") if empty else (marks, f"<{kind}>")
            if count != len(parts):
                beyond = sum(text.count(f"<{kind}>") for text in _texts(others))
                more = f" ({beyond} more in messages that can't hold media: only the user's and tools' can)" * bool(
                    beyond
                )
                raise BadRow(
                    f"{where}: places ({form}) in the user's messages: {count}{more}; media in the field {name!r}: "
                    f"{len(parts)}. There must be one place for each."
                )
            rest = iter(parts)
            made = [_filled(content, kind, rest, bool(empty)) for content in made]
        elif parts:
            own = sum(kind_of(part) == kind for content in contents for part in _listed(content))
            if own or len(users) != 1:
                why = (
                    f"the messages name {own} of their own" if own else f"there are {len(users)} messages of the user's"
                )
                raise BadRow(
                    f"{where}: nothing says where what the field {name!r} holds belongs, since {why}: write <{kind}> "
                    f"into the texts, once for each of the {len(parts)}."
                )
            front += parts
    if front:
        content = made[users[0]]
        text = [{"type": "text", "text": content}] if content else []
        made[users[0]] = [*front, *(content if isinstance(content, list) else text)]
    return made


def _listed(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []


def _texts(contents: Sequence[Any]) -> Iterator[str]:
    for content in contents:
        if isinstance(content, str):
            yield content
        for part in _listed(content):
            if _is_text(part):
                yield part["text"]


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _TEXTS and isinstance(part.get("text"), str)


def _is_place(part: Any, kind: str) -> bool:
    return kind_of(part) == kind and not names_medium(part, kind)


def _filled(content: Any, kind: str, media: Iterator[dict[str, Any]], by_parts: bool) -> Any:
    """A content with the next media in its places."""
    if by_parts:
        parts = _listed(content)
        return [{**p, **next(media)} if _is_place(p, kind) else p for p in parts] if parts else content
    if isinstance(content, str):
        return list(_split({"type": "text", "text": content}, kind, media)) if f"<{kind}>" in content else content
    if not isinstance(content, list):
        return content
    return [made for part in content for made in (_split(part, kind, media) if _is_text(part) else [part])]


def _split(part: Mapping[str, Any], kind: str, media: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A part that is a text, cut where media stand; line breaks next to them and blank pieces are left out."""
    first, *rest = part["text"].split(f"<{kind}>")
    if not rest:
        yield dict(part)
        return
    pieces = [first.rstrip("\r\n"), *(text.strip("\r\n") for text in rest[:-1]), rest[-1].lstrip("\r\n")]
    for number, text in enumerate(pieces):
        if number:
            yield next(media)
        if text.strip():
            yield {**part, "text": text}
