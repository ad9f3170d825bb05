"""Calls of tools in what a model said: found, compared as data, written for people."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_BEGIN = re.compile(r"[{\[]")
_FENCE = re.compile(r"```[a-z_]*\s*$")
_FENCE_ENDS = re.compile(r"\s*```")


@dataclass(frozen=True)
class Call:
    """One call: the tool's name and its arguments as data."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        said = ", ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in self.arguments.items())
        return f"{self.name}({said})"


def calls_of(message: dict[str, Any]) -> list[Call]:
    """The calls of an OpenAI message, perhaps none."""
    functions = (call["function"] for call in message.get("tool_calls") or [])
    return [Call(f["name"], f["arguments"]) for f in functions]


def as_message(answer: str) -> dict[str, Any]:
    """What a model said as an OpenAI message, with its calls where it made some."""
    text, calls = parse_answer(answer)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        functions = ({"name": c.name, "arguments": c.arguments} for c in calls)
        message["tool_calls"] = [{"type": "function", "function": f} for f in functions]
    return message


def shown(answer: str) -> str:
    """An answer for people: its text, and each call on a line of its own, `→ tool(argument=value)`."""
    text, calls = parse_answer(answer)
    return "\n".join([*([text] if text else []), *(f"→ {call}" for call in calls)])


def parse_answer(answer: str) -> tuple[str, list[Call]]:
    """Splits an answer in Gemma 3's form into its text and its calls.

    A call is a JSON object with `name` and `parameters`; several stand in a list, or one after the other. A code fence
    around them is passed over, since the published models like to write one. Anything that isn't whole JSON is text.

    Args:
        answer: The answer, decoded, without special tokens.

    Returns:
        The text around the calls, and the calls in their order.
    """
    decoder, end, said = json.JSONDecoder(), 0, 0
    calls: list[Call] = []
    texts: list[str] = []
    while begin := _BEGIN.search(answer, end):
        try:
            value, end = decoder.raw_decode(answer, begin.start())
        except (ValueError, RecursionError):
            end = begin.end()
            continue
        if found := _calls(value):
            calls += found
            texts.append(_FENCE.sub("", answer[said : begin.start()].rstrip()))
            fence = _FENCE_ENDS.match(answer, end)
            said = end = fence.end() if fence else end
    texts = [t.strip() for t in (*texts, answer[said:])]
    return "\n".join(t for t in texts if t), calls


def _calls(value: Any) -> list[Call]:
    entries = value if isinstance(value, list) else [value]
    calls = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            return []
        if entry.keys() != {"name", "parameters"} or not isinstance(entry["parameters"], dict):
            return []
        calls.append(Call(entry["name"], entry["parameters"]))
    return calls


def same_calls(made: Sequence[Call], wanted: Sequence[Call]) -> bool:
    """Whether the same calls were made, in any order: names and arguments equal as JSON data."""
    left = list(made)
    for call in wanted:
        same = (i for i, c in enumerate(left) if c.name == call.name and same_data(c.arguments, call.arguments))
        match = next(same, None)
        if match is None:
            return False
        del left[match]
    return not left


def same_data(a: Any, b: Any) -> bool:
    """JSON equality: 20 equals 20.0, but true isn't 1; the order of keys doesn't count."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_data(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_data, a, b))
    return bool(a == b)
