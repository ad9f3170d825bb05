"""The record that every data format yields, and the checks that every row passes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

CONTROL_TOKENS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
ROLES = ("system", "user", "assistant", "tool")
# The system role's name in newer OpenAI models and in FunctionGemma.
_SYSTEM_TOO = "developer"
# Field names that servers use for a model's thinking.
_THINKING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        messages: The conversation in the OpenAI form, or None for running text. An assistant's message with
            `"weight": 0` (as in OpenAI's fine-tuning) is not trained on.
        text: Running text, or None for a conversation.
        tools: Function schemas in the OpenAI form, or None.
        rejected: The answer that is worse than the last one of `messages`, as messages after `prompt`, or None.
        where: File and line, for messages to the user.
        thinking: Whether the prompt asks the model to think.
        unanswered: Whether the whole conversation is the prompt, earlier answers included.
        row: The original row of the file, which rewards may read; a reader of the user's own may leave it empty.
    """

    where: str
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None
    rejected: list[dict[str, Any]] | None = None
    thinking: bool = False
    unanswered: bool = False
    row: dict[str, Any] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.text is None):
            raise BadRow(f"{self.where}: a record has either messages or text.")
        try:
            json.dumps([self.messages, self.text, self.tools, self.rejected], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):x}"
            raise BadRow(f"{self.where}: {half} stands without the other half of its character.") from error
        except TypeError as error:
            raise BadRow(f"{self.where}: a value is not valid in JSON ({error}).") from error
        for message in [*(self.messages or ()), *(self.rejected or ())]:
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            for part in parts:
                _refuse_control_tokens(part.get("text"), CONTROL_TOKENS, self.where)
        _refuse_control_tokens(self.text, ("<bos>", "<eos>"), self.where)

    @property
    def prompt(self) -> list[dict[str, Any]]:
        """The conversation up to its last answer."""
        messages = self.messages or []
        if self.unanswered:
            return messages
        last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages))
        return messages[:last]

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The last answer of the conversation as a message (the reference answer), or None."""
        messages, last = self.messages or [], len(self.prompt)
        return messages[last] if last < len(messages) else None

    @property
    def answer(self) -> str:
        """The text of the last answer; empty where there is none."""
        content = (self.wanted or {}).get("content") or ""
        return content if isinstance(content, str) else "".join(part["text"] for part in content)


class BadRow(ValueError):
    """A row that can't be used; the message names file and line."""


def _refuse_control_tokens(text: Any, tokens: tuple[str, ...], where: str) -> None:
    """In a row's text they would become real control tokens: a second <bos>, or a forged turn."""
    found = [t for t in tokens if isinstance(text, str) and t in text]
    if found:
        raise BadRow(f"{where}: the text holds {', '.join(found)}, which the template writes itself; take it out.")


def _content(content: Any, where: str, role: str, calls: bool) -> Any:
    if content is None and (calls or role == "assistant"):  # an answer without both is refused as empty
        return ""
    if content is None:
        raise BadRow(f"{where}: a message of the role {role!r} has no content.")
    if isinstance(content, str) or (isinstance(content, dict) and role == "tool"):
        return content
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise BadRow(f"{where}: a part of {role}'s content isn't {{'type': 'text', 'text': …}}.")
        if role == "system" and len(content) != 1:
            raise BadRow(f"{where}: the system text has {len(content)} parts, and the template reads one; join them.")
        return content
    raise BadRow(f"{where}: {role}'s content is {type(content).__name__}, not a text.")


def _is_blank(content: Any) -> bool:
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return not any(text.strip() for text in texts)


def parsed(value: Any, where: str, what: str) -> Any:
    """Parses a value that is a JSON text, as in the cell of a table; any other value is returned as it is.

    Raises:
        BadRow: The text isn't JSON; the message calls it `what`.
    """
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise BadRow(f"{where}: {what}: this text is not JSON ({error}).") from error


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where}: a tool call isn't {{'type': 'function', 'function': {{'name', 'arguments'}}}}.")
    arguments = function.get("arguments", {})
    if arguments == "":  # how some servers write a call without arguments
        arguments = {}
    # The OpenAI API gives the arguments as a text that holds JSON
    arguments = parsed(arguments, where, f"the arguments of {function['name']}")
    if not isinstance(arguments, dict):
        raise BadRow(f"{where}: the arguments of {function['name']} aren't a mapping.")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _by_id(calls: list[dict[str, Any]]) -> dict[str, str]:
    return {c["id"]: c["function"]["name"] for c in calls if isinstance(c.get("id"), str)}


def _answered(result: dict[str, Any], called: dict[str, str]) -> str | None:
    """Name of the function whose result this is, by the call's id or its own name; None if the row doesn't say."""
    by_id, name = result.get("tool_call_id"), result.get("name")
    found = called.get(by_id) if isinstance(by_id, str) else None
    return found or (name if isinstance(name, str) else None)


def _results(message: Any) -> list[Any]:
    """The message; results in Google's format, `{"name", "response"}` or a list of them, become one message each."""
    if not isinstance(message, dict) or message.get("role") != "tool":
        return [message]
    content = message.get("content")
    entries: list[Any] = content if isinstance(content, list) else [content]
    if not entries or not all(isinstance(e, dict) and e.keys() == {"name", "response"} for e in entries):
        return [message]
    return [{**message, "name": e["name"], "content": _result(e["response"])} for e in entries]


def _result(response: Any) -> Any:
    return response if isinstance(response, str | dict) else json.dumps(response, ensure_ascii=False)


def _thinking(message: dict[str, Any], where: str) -> str | None:
    found = next((message[key] for key in _THINKING if message.get(key)), None)
    if found is None or (isinstance(found, str) and not found.strip()):
        return None
    if message.get("role") != "assistant" or not isinstance(found, str):
        raise BadRow(f"{where}: thinking (reasoning_content) is a text, and in an assistant's message.")
    return found


def checked_messages(messages: Any, where: str, answered: bool = True) -> list[dict[str, Any]]:
    """Checks every message; call arguments become mappings, and results get the names that the row gives them.

    The role `developer` becomes `system`, and thinking `reasoning_content`. A tool's result stays a text or a mapping.

    Args:
        messages: The conversation as it was read.
        where: File and line.
        answered: Whether there must be an answer to learn from.

    Raises:
        BadRow: Not a conversation, roles that don't alternate, or no answer to learn from.
    """
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        messages = parsed(messages, where, "the conversation")
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{where}: the conversation isn't a list of messages.")
    clean: list[dict[str, Any]] = []
    called: dict[str, str] = {}
    for i, message in enumerate(entry for given in messages for entry in _results(given)):
        role = message.get("role") if isinstance(message, dict) else None
        role = "system" if role == _SYSTEM_TOO else role
        if role not in ROLES:
            raise BadRow(f"{where}: message {i + 1} has the role {role!r}, not one of {', '.join(ROLES)}.")
        calls = message.get("tool_calls")
        entry = {"role": role, "content": _content(message.get("content"), where, role, bool(calls))}
        if calls:
            if role != "assistant" or not isinstance(calls, list):
                raise BadRow(f"{where}: message {i + 1}: tool_calls must be a list, in an assistant's message.")
            entry["tool_calls"] = [_tool_call(c, where) for c in calls]
            called = _by_id(calls)
        if role == "tool" and (name := _answered(message, called)):
            entry["name"] = name
        if thinking := _thinking(message, where):
            entry["reasoning_content"] = thinking
        if (weight := message.get("weight")) is not None:
            if role != "assistant" or weight not in (0, 1):
                raise BadRow(f"{where}: message {i + 1}: weight is 0 or 1, and in an assistant's message.")
            entry["weight"] = int(weight)
        if role == "assistant" and "tool_calls" not in entry and _is_blank(entry["content"]):
            raise BadRow(f"{where}: message {i + 1}: the assistant's answer is empty.")
        clean.append(entry)
    _check_order([m["role"] for m in clean], where)
    if answered and all(m["role"] != "assistant" or m.get("weight") == 0 for m in clean):
        raise BadRow(
            f"{where}: there is no assistant message to learn from (data.prompts_only=true: rewards need none)."
        )
    return clean


def _check_order(roles: list[str], where: str) -> None:
    turns = roles[1:] if roles[0] == "system" else roles
    if "system" in turns:
        raise BadRow(f"{where}: a system message can only be the first one.")
    user_next, previous = True, ""
    for i, role in enumerate(turns):
        is_user_side = role != "assistant"
        if is_user_side != user_next and not (role == "tool" and previous == "tool"):
            raise BadRow(
                f"{where}: roles must alternate user/assistant, but {role!r} follows {previous or 'nothing'!r}."
            )
        if i == 0 and role != "user":
            raise BadRow(f"{where}: the conversation must begin with the user (after a system text).")
        user_next, previous = not is_user_side, role


def checked_tools(tools: Any, where: str) -> list[dict[str, Any]] | None:
    """Checks the tools: a list of function schemas, or None without tools.

    Raises:
        BadRow: Not in the OpenAI format.
    """
    tools = parsed(tools, where, "tools") if tools else None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise BadRow(f"{where}: the tools aren't a list (data.tools_column names their field).")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(f"{where}: a tool isn't {{'type': 'function', 'function': {{'name', …}}}}.")
    return tools
