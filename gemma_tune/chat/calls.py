"""Tool calls in a model's answer: parse them, compare them as data, and write them for people."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gemma_tune.chat.forms import FORMS, ChatForm
from gemma_tune.chat.native import NoCall, Reader
from gemma_tune.media.kinds import shown_name
from gemma_tune.same_json import same_json

_BEGIN = re.compile(r"[{\[]")
_FENCE = re.compile(r"```[a-z_]*\s*$")
_FENCE_ENDS = re.compile(r"\s*```")


@dataclass(frozen=True)
class Call:
    """One tool call: the tool's name and its arguments as data."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        said = ", ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in self.arguments.items())
        return f"{self.name}({said})"


class ParsedAnswer(NamedTuple):
    """An answer, split into its parts.

    Attributes:
        text: The text around the calls.
        calls: The calls in order.
        thinking: The thinking before the answer.
    """

    text: str
    calls: list[Call]
    thinking: str = ""


def calls_of(message: dict[str, Any]) -> list[Call]:
    """The calls of an OpenAI message, perhaps none."""
    functions = (call["function"] for call in message.get("tool_calls") or [])
    return [Call(f["name"], f["arguments"]) for f in functions]


def content_text(message: dict[str, Any]) -> str:
    """The text of a message for people: its parts joined, and a result that is a mapping as JSON."""
    content = message["content"]
    if isinstance(content, dict):
        return json.dumps(content, ensure_ascii=False)
    return content if isinstance(content, str) else " ".join(map(_part_text, content))


def _part_text(part: dict[str, Any]) -> str:
    """The text of a part; of a medium its kind and the name of its file."""
    kind = part.get("type", "text")
    return str(part["text"]) if kind == "text" else f"[{kind} {shown_name(part.get(kind, ''))}]"


def as_message(answer: str, form: ChatForm | None = None) -> dict[str, Any]:
    """A model's answer as an OpenAI message, with its calls and its thinking if there are any."""
    said = parse_answer(answer, form)
    message: dict[str, Any] = {"role": "assistant", "content": said.text}
    if said.thinking:
        message["reasoning_content"] = said.thinking
    if said.calls:
        functions = ({"name": c.name, "arguments": c.arguments} for c in said.calls)
        message["tool_calls"] = [{"type": "function", "function": f} for f in functions]
    return message


def shown(answer: str, form: ChatForm | None = None) -> str:
    """An answer for people: thinking in brackets, its text, and each call as a line, `→ tool(argument=value)`."""
    said = parse_answer(answer, form)
    thinking = [f"[thinking: {said.thinking}]"] if said.thinking else []
    return "\n".join([*thinking, *([said.text] if said.text else []), *(f"→ {call}" for call in said.calls)])


def parse_answer(answer: str, form: ChatForm | None = None) -> ParsedAnswer:
    """Splits an answer into its text, its calls and its thinking.

    In Gemma 3's chat format a call is a JSON object with `name` and `parameters`; several calls are a list, or follow
    one another. A code fence around them is skipped, since the published models often write one. FunctionGemma and
    Gemma 4 have tokens for calls, and Gemma 4 for thinking. Anything that isn't a complete call is text.

    Args:
        answer: The answer, as `answer_text` gives it.
        form: Its chat format; None: told by its tokens, which can't occur in another format.
    """
    if form is None:
        native = (f for f in (FORMS["functiongemma"], FORMS["gemma4"]) if any(t in answer for t in f.answer_tokens))
        form = next(native, FORMS["gemma3"])
    if form.calls == "native":
        return _native(answer, form)
    return _json(answer) if form.calls else ParsedAnswer(answer.strip(), [])


def _native(answer: str, form: ChatForm) -> ParsedAnswer:
    thinking, answer = split_thinking(answer, form)
    begin_token, end_token = (t for t in form.answer_tokens if "call" in t)
    calls: list[Call] = []
    texts: list[str] = []
    said = end = 0
    while (begin := answer.find(begin_token, end)) >= 0:
        reader = Reader(answer, begin + len(begin_token), form.string_token)
        try:
            calls.append(Call(*reader.call(end_token)))
        except NoCall:
            end = begin + len(begin_token)
            continue
        texts.append(answer[said:begin])
        said = end = reader.place
    texts = [t.strip() for t in (*texts, answer[said:])]
    return ParsedAnswer("\n".join(t for t in texts if t), calls, thinking)


def split_thinking(answer: str, form: ChatForm) -> tuple[str, str]:
    """The thinking in an answer, and the rest with its calls as written.

    An answer may begin inside its thinking, if the prompt opened it, and may be cut off there.
    """
    if "<|channel>" not in form.answer_tokens:
        return "", answer.strip()
    begin, end = "<|channel>", "<channel|>"
    thoughts: list[str] = []
    rest = ""
    *closed, last = answer.split(end)
    for part in closed:
        before, found, thought = part.partition(begin)
        thoughts.append(thought if found else before)
        rest += before if found else ""
    before, _, thought = last.partition(begin)
    thoughts.append(thought)
    thoughts = [t.lstrip().removeprefix("thought\n").strip() for t in thoughts]
    return "\n".join(t for t in thoughts if t), (rest + before).strip()


def _json(answer: str) -> ParsedAnswer:
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
    return ParsedAnswer("\n".join(t for t in texts if t), calls)


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
    """Whether both are the same calls in any order; names and arguments are compared as JSON data."""
    left = list(made)
    for call in wanted:
        same = (i for i, c in enumerate(left) if c.name == call.name and same_json(c.arguments, call.arguments))
        match = next(same, None)
        if match is None:
            return False
        del left[match]
    return not left
