"""`data=sharegpt`: `conversations` of `from` and `value`, as in ShareGPT's exports and data sets that follow them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.records import BadRow, Record, checked_messages, checked_tools, parsed
from gemma_tune.data.sources import Source, field, map_rows

_CALL = "call"
ROLES = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": _CALL, "tool_call": _CALL,
    "observation": "tool", "tool": "tool", "function_response": "tool", "tool_response": "tool", "function": "tool",
}  # fmt: skip


def fields(data: DataConfig) -> tuple[str, ...]:
    """Required fields."""
    return ("conversations",)


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one conversation per row; `system` and `tools` may be fields beside it.

    The value of a `function_call` is JSON: `{"name": …, "arguments": {…}}` or a list of them.
    """

    def record(where: str, row: dict[str, Any]) -> Record:
        said = parsed(field(row, "conversations", where), where, "conversations")
        if not isinstance(said, list) or not said:
            raise BadRow(f"{where}: the field 'conversations' isn't a list of messages.")
        messages = [_message(m, i, where) for i, m in enumerate(said, start=1)]
        if row.get("system") and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": row["system"]})
        messages = checked_messages(messages, where, answered=not data.prompts_only)
        return Record(where, messages=messages, tools=_tools(row.get("tools"), where))

    return map_rows(source, record)


def _message(message: Any, number: int, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRow(f"{where}: message {number} is {type(message).__name__}, not an object with `from` and `value`.")
    who, what = message.get("from", message.get("role")), message.get("value", message.get("content"))
    role = ROLES.get(who.lower()) if isinstance(who, str) else None
    if role is None:
        raise BadRow(f"{where}: message {number} is from {who!r}, not from one of {', '.join(ROLES)}.")
    if role != _CALL:
        return {"role": role, "content": what}
    calls = parsed(what, where, f"message {number}")
    calls = calls if isinstance(calls, list) else [calls]
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": c} for c in calls]}


def _tools(tools: Any, where: str) -> list[dict[str, Any]] | None:
    """The tools, which may also be bare functions: `{"name": …, "parameters": …}`."""
    tools = parsed(tools, where, "tools") if tools else None
    if isinstance(tools, list):
        tools = [{"type": "function", "function": t} if isinstance(t, dict) and "name" in t else t for t in tools]
    return checked_tools(tools, where)
