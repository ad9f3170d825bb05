"""Messages in Google's form: Gemini's `parts`, and results as `{"name", "response"}`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gemma_tune.data.media_parts import kind_of
from gemma_tune.data.records import BadRow
from gemma_tune.data.row_fields import structure_in
from gemma_tune.media.kinds import KINDS

_FILES = ("inlineData", "inline_data", "fileData", "file_data")
_MIME = ("mimeType", "mime_type")
_PLACES = ("data", "fileUri", "file_uri")
_KEYS = frozenset({"text", "functionCall", "function_call", "thought", *_FILES})


class Parts(NamedTuple):
    """What the parts of a message say.

    Attributes:
        text: Its text, or the parts with it and its media.
        calls: Its calls, as they were written.
        thinking: The text of the parts that are thoughts.
    """

    text: Any
    calls: list[Any]
    thinking: str


def is_parts(content: Any) -> bool:
    """Whether a message's content is a list of Gemini's parts; OpenAI's have a `type`."""
    if not isinstance(content, list):
        return False
    return any(isinstance(part, dict) and not part.get("type") and part.keys() & _KEYS for part in content)


def read_parts(parts: list[Any], where: str, note: Callable[[str, Any], None]) -> Parts:
    """Reads Gemini's parts.

    Args:
        parts: As they were written.
        where: File, line and message.
        note: Is told each field that isn't used, and its value.

    Raises:
        BadRow: A part is a file of another kind, or no text.
    """
    text, calls, thinking = "", [], ""
    entries: list[dict[str, Any]] = []  # in place of the text, where there are media
    for part in parts:
        if kind_of(part):  # of a field beside the parts, put in its place already
            entries, text = [*entries, *_text_part(text), part], ""
            continue
        kept = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
        call = kept.pop("functionCall", kept.pop("function_call", None))
        said, thought = kept.pop("text", ""), kept.pop("thought", False)
        kept.pop("type", None)
        if name := next((name for name in _FILES if name in kept), None):
            entries, text = [*entries, *_text_part(text), _medium(kept.pop(name), where)], ""
            for key, value in kept.items():
                note(f"parts.{key}", value)
            continue
        if not isinstance(said, str) or not isinstance(part, dict) or (call is None and "text" not in part):
            raise BadRow(f"{where}: a part is neither a text nor a call: {', '.join(map(str, kept)) or said!r}.")
        for key, value in kept.items():
            note(f"parts.{key}", value)
        calls += [call] if call is not None else []
        text, thinking = (text, thinking + said) if thought is True else (text + said, thinking)
    return Parts([*entries, *_text_part(text)] if entries else text, calls, thinking)


def _text_part(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text.strip() else []


def _medium(file: Any, where: str) -> dict[str, Any]:
    """The part of a file, `inlineData` or `fileData`, by its type."""
    given = file if isinstance(file, dict) else {}
    said, place = (next((given[n] for n in names if given.get(n)), None) for names in (_MIME, _PLACES))
    kind = str(said).partition("/")[0]
    if kind not in KINDS or not isinstance(place, str):
        raise BadRow(f"{where} holds a file of the type {said!r}; only images, audio and video are read.")
    return {"type": kind, kind: {"data": place} if "data" in given else {"url": place}}


def results(message: Any, where: str) -> Iterator[Any]:
    """The message; results in Google's forms become one message each.

    They are `{"name", "response"}` or a list of them as content, or parts with a `functionResponse`.
    """
    given = structure_in(message)
    if not isinstance(given, dict):
        yield message
        return
    content = given.get("content")
    content = given.get("parts") if content is None else content
    if not isinstance(content, list | dict):
        yield given
        return
    entries: list[Any] = content if isinstance(content, list) else [content]
    responses = [e.get("functionResponse", e.get("function_response")) for e in entries if isinstance(e, dict)]
    if any(responses) and not all(isinstance(r, dict) for r in responses):
        raise BadRow(f"{where}: a message holds results of functions and other parts; write them as two messages.")
    if responses and len(responses) == len(entries) and all(isinstance(r, dict) for r in responses):
        entries, given = responses, {**given, "role": "tool"}
    keys = {"name", "response"}
    if (
        given.get("role") != "tool"
        or not entries
        or not all(isinstance(e, dict) and e.keys() - {"id"} == keys for e in entries)
    ):
        yield given
        return
    rest = {k: v for k, v in given.items() if k != "parts"}
    for e in entries:
        response = e["response"]
        plain = isinstance(response, str | dict)
        yield {
            **rest,
            "name": e["name"],
            "content": response if plain else json.dumps(response, ensure_ascii=False),
        }
