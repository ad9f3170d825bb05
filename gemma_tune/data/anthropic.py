"""Messages in Anthropic's form: content in parts of the types `thinking`, `text`, `tool_use` and `tool_result`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gemma_tune.data.google import Parts
from gemma_tune.data.known_fields import ROLE_NAMES, ROLES
from gemma_tune.data.records import BadRow

_OWN = ("thinking", "tool_use")
_CALL = ("id", "name", "input")


def is_parts(content: Any) -> bool:
    """Whether a message's content holds thinking or calls in Anthropic's form."""
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") in _OWN for part in content)


def read_parts(parts: list[Any], where: str, note: Callable[[str, Any], None]) -> Parts:
    """Reads the thinking and the calls among the parts of a message; the text is what is left of them.

    Args:
        parts: As they were written: thinking, then texts, then calls. No other order can be rendered.
        where: File, line and message.
        note: Is told each field that isn't used, and its value.

    Raises:
        BadRow: They have another order, or two of them are thinking.
    """
    order = ("thinking", "text", "tool_use")
    kinds = [part.get("type") for part in parts if isinstance(part, dict)]
    placed = [order.index(kind) if kind in order else 1 for kind in kinds]
    if placed != sorted(placed) or placed.count(0) > 1:
        raise BadRow(
            f"{where} has parts in the order {', '.join(map(str, kinds))}; only one part of thinking, then texts, then "
            "calls can be rendered: put them in this order, or leave such rows out with data.on_bad_row=skip."
        )
    rest, calls, thinking = [], [], ""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _OWN:
            rest.append(part)
            continue
        known = ("type", *_CALL) if kind == "tool_use" else ("type", "thinking")
        for key in part.keys() - set(known):
            note(f"content.{key}", part[key])
        if kind == "tool_use":
            calls.append({key: part[key] for key in _CALL if key in part})
        else:
            thinking = _text(part.get("thinking"), where)
    return Parts(rest or "", calls, thinking)


def _text(said: Any, where: str) -> str:
    """A text, or Mistral's list of parts with one."""
    parts = [{"text": said}] if isinstance(said, str) else said
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        raise BadRow(f"{where}: a part of the type 'thinking' has no text under `thinking`.")
    return "".join(part["text"] for part in parts)


def results(message: Any) -> Iterator[Any]:
    """The message; parts that are results of calls become messages of their own, and what is left of it another."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or _role(message) not in ("user", "tool"):
        yield message
        return
    others: list[Any] = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "tool_result":
            if others:
                yield {**message, "content": others}
                others = []
            yield _result(message, part)
        else:
            others.append(part)
    if others or not content:
        yield {**message, "content": others}


def _role(message: Mapping[str, Any]) -> str | None:
    said = next((message[name] for name in ROLE_NAMES if message.get(name)), None)
    return ROLES.get(said.strip().lower()) if isinstance(said, str) else None


def _result(message: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """The message of a result; other fields of the part keep their place in their names."""
    known = ("type", "tool_use_id", "content")
    others = {f"content.{key}": value for key, value in part.items() if key not in known}
    if others.get("content.is_error") is False:  # as without it
        del others["content.is_error"]
    content = part.get("content")
    rest = {key: value for key, value in message.items() if key not in ROLE_NAMES}
    own = {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": "" if content is None else content}
    return {**rest, **own, **others}
