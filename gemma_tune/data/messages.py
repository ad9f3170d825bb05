"""Conversations as people have them, read as one form: OpenAI's messages, checked.

Taken are OpenAI's `role` and `content`, ShareGPT's `from` and `value`, Gemini's `parts`, and every name of a role that
`known_fields.ROLES` has. No field of a message vanishes: what isn't read is listed (`RowFields.not_used`) or refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from gemma_tune.data import google
from gemma_tune.data.known_fields import CALL, ROLES, SWITCHES, THINKING, is_thinking, switch_of
from gemma_tune.data.records import BadRow
from gemma_tune.data.row_fields import RowFields, is_empty, structure_in
from gemma_tune.data.tools import Tools, calls_of_message, checked_call, parsed

Messages = list[dict[str, Any]]
_PLAIN = ("system", "user", "assistant", "tool")
_SWITCHES = frozenset(SWITCHES)
_JOIN = "join the two messages, or leave such rows out with data.on_bad_row=skip"


def checked_messages(
    messages: Any,
    where: str,
    answered: bool = True,
    fields: RowFields | None = None,
    name: str | Sequence[str] = "messages",
    tools: Tools | None = None,
) -> Messages:
    """Checks every message; call arguments become mappings, and results get the names that the row gives them.

    The role `developer` becomes `system`, and thinking `reasoning_content`. A tool's result stays a text or a mapping.
    An answer that isn't trained has `"weight": 0`, whatever its switch is called. An assistant's text that is followed
    by its own call is one message.

    Args:
        messages: The conversation as it was read.
        where: File and line.
        answered: Whether there must be an answer to learn from.
        fields: Is told which fields of the messages are not used.
        name: The conversation's field, or that of each message.
        tools: The row's tools, checked.

    Raises:
        BadRow: Not a conversation, roles that don't alternate, or no answer to learn from.
    """
    messages = structure_in(messages)
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{where}: the conversation isn't a list of messages.")
    fields = fields or RowFields(where, {})
    clean: Messages = []
    called: dict[str, str] = {}
    names = [name] * len(messages) if isinstance(name, str) else name
    read = (
        (entry, field) for given, field in zip(messages, names, strict=True) for entry in google.results(given, where)
    )
    for i, (message, field) in enumerate(read, start=1):
        one = _Message(message, i, fields, field)
        entry = one.entry(tools, called)
        one.finish()
        if clean and _goes_on(clean[-1], entry):
            calls = [*clean[-1].get("tool_calls", ()), *entry["tool_calls"]]
            clean[-1] = {**clean[-1], **entry, "content": clean[-1]["content"], "tool_calls": calls}
        else:
            clean.append(entry)
    _check_order([m["role"] for m in clean], where)
    answers = [m for m in clean if m["role"] == "assistant"]
    if answered and answers and all(m.get("weight") == 0 for m in answers):
        raise BadRow(
            f"{where}: there is no assistant message to learn from: every answer is switched off (weight, loss, train, "
            "loss_mask …). Leave such rows out with data.on_bad_row=skip."
        )
    if answered and not answers:
        raise BadRow(
            f"{where}: there is no assistant message to learn from (data.prompts_only=true: rewards need none)."
        )
    return clean


def plain(messages: Any) -> Any:
    """The messages of a list, or of the text of one, with one name for each role and without nulls."""
    messages = structure_in(messages)
    return [_plain(message) for message in messages] if isinstance(messages, list) else messages


def _plain(message: Any) -> Any:
    given = structure_in(message)
    if not isinstance(given, dict):
        return message
    if given.get("role") in _PLAIN and None not in given.values():
        return given
    kept = {k: v for k, v in given.items() if v is not None}
    key = "role" if "role" in kept else "from"
    said = kept.get(key)
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        return kept
    del kept[key]
    return {"role": "function_call" if role == CALL else role, **kept}


class _Message:
    """One message as it was read.

    Args:
        message: Anything.
        number: Its place in the conversation, from 1.
        fields: The row.
        name: The field that it stands in.
    """

    def __init__(self, message: Any, number: int, fields: RowFields, name: str) -> None:
        self.where, self.number = fields.where, number
        self._fields, self._name = fields, name
        message = structure_in(message)
        given: Mapping[str, Any] = message if isinstance(message, dict) else {}
        self._message = {k: v for k, v in given.items() if v is not None and not fields.is_ignored(f"{name}.{k}")}
        self._used: set[str] = set()
        said = self._take("role", "from")
        self._said = said
        self.role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
        if self.role is None:
            known = ", ".join(dict.fromkeys(("system", "user", "assistant", "tool", *ROLES)))
            keys = "" if said else f"; its fields: {', '.join(map(str, given)) or 'none'}"
            raise BadRow(f"{self.where}: message {number} has the role {said!r}, not one of {known}{keys}.")

    def _take(self, *names: str) -> Any:
        """The value under the first of some names that the message has."""
        for name in names:
            if name in self._message:
                self._used.add(name)
                return self._message[name]
        return None

    def entry(self, tools: Tools | None, called: dict[str, str]) -> dict[str, Any]:
        """The message in the OpenAI form; `called` gets the names of its calls by their ids."""
        content = self._take("content", "value", "parts", "text")
        calls = calls_of_message(self._message, self.where, self.number)
        self._used |= {"tool_calls", "function_call"}
        role = str(self.role)
        if role == CALL:
            found = parsed(content, self.where, f"message {self.number}")
            calls, content, role = [*(found if isinstance(found, list) else [found]), *calls], "", "assistant"
        thinking = self._thinking(role)
        if google.is_parts(content):
            said = google.read_parts(content, f"{self.where}: message {self.number}", self._note)
            content, calls, thinking = said.text, [*calls, *said.calls], thinking or said.thinking
        if calls and role != "assistant":
            raise BadRow(f"{self.where}: message {self.number}: tool_calls must be a list, in an assistant's message.")
        entry: dict[str, Any] = {"role": role, "content": self._content(content, role, bool(calls))}
        if calls:
            entry["tool_calls"] = [checked_call(c, self.where, tools, self._note) for c in calls]
            for call, kept in zip(map(structure_in, calls), entry["tool_calls"], strict=True):
                if isinstance(call.get("id"), str | int):
                    called[str(call["id"])] = kept["function"]["name"]
        if role == "tool" and (named := self._answers(called)):
            entry["name"] = named
        if thinking:
            entry["reasoning_content"] = thinking
        if (weight := self._weight(role)) is not None:
            entry["weight"] = weight
        if role == "assistant" and not calls and _is_blank(entry["content"]):
            raise BadRow(f"{self.where}: message {self.number}: the assistant's answer is empty.")
        self._fields.check_missing(self._name, _text_of(entry["content"]))
        return entry

    def finish(self) -> None:
        """Lists or refuses the fields that were not used."""
        for key, value in self._message.items():
            if key not in self._used and not is_empty(value):
                self._note(key, value)

    def _note(self, key: str, value: Any = None) -> None:
        self._fields.refuse(f"{self._name}.{key}", value)
        self._fields.not_used(f"{self._name}.{key}")

    def _content(self, content: Any, role: str, calls: bool) -> Any:
        if content is None and (calls or role == "assistant"):  # an answer without both is refused as empty
            return ""
        if content is None:
            raise BadRow(f"{self.where}: a message of the role {role!r} has no content.")
        if isinstance(content, int | float | Decimal) and not isinstance(content, bool):
            return str(content)
        if isinstance(content, str) or (isinstance(content, dict) and role == "tool"):
            return content
        if not isinstance(content, list):
            raise BadRow(f"{self.where}: {role}'s content is {type(content).__name__}, not a text.")
        parts = []
        for part in content:
            kept = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
            if kept.get("type") not in ("text", "input_text", "output_text") or not isinstance(kept.get("text"), str):
                kind = f" of the type {kept['type']!r}" if "type" in kept else ""
                raise BadRow(
                    f"{self.where}: a part of {role}'s content{kind} isn't {{'type': 'text', 'text': …}}; only text is "
                    "trained here. Calls stand in `tool_calls`, thinking in `reasoning_content`."
                )
            for key in kept.keys() - {"type", "text"}:
                self._note(f"content.{key}", kept[key])
            parts.append({"type": "text", "text": kept["text"]})
        if role == "system" and len(parts) != 1:
            raise BadRow(
                f"{self.where}: the system text has {len(parts)} parts, and the template reads one; join them."
            )
        return parts

    def _answers(self, called: Mapping[str, str]) -> str | None:
        """Name of the function whose result this is, by the call's id or its own name; None if the row doesn't say."""
        by_id, name = self._take("tool_call_id"), self._take("name")
        found = called.get(str(by_id)) if isinstance(by_id, str | int) else None
        return found or (name if isinstance(name, str) else None)

    def _thinking(self, role: str) -> str | None:
        found = None
        for key in THINKING:
            if key in self._message and is_thinking(self._message[key]):  # else listed as not used
                said = self._take(key)
                found = said if is_empty(found) else found
                if said != found and not is_empty(said):
                    raise BadRow(f"{self.where}: message {self.number} has two texts of thinking; keep one.")
        if found is None or is_empty(found) or (isinstance(found, str) and not found.strip()):
            return None
        if role != "assistant" or not isinstance(found, str):
            raise BadRow(f"{self.where}: thinking (reasoning_content) is a text, and in an assistant's message.")
        return found

    def _weight(self, role: str) -> int | None:
        """What the message's switches say; None where it has none."""
        found: dict[str, int] = {}
        if _SWITCHES.isdisjoint(self._message):
            return None
        for key in SWITCHES:
            if key not in self._message:
                continue
            try:
                said = switch_of(self._take(key))
            except ValueError:
                raise BadRow(
                    f"{self.where}: message {self.number}: {key} is {self._message[key]!r}, and must be 0 or 1 (false "
                    "or true), in an assistant's message."
                ) from None
            if said is not None:
                found[key] = said
        if role != "assistant":
            if wrong := [key for key, said in found.items() if said]:
                raise BadRow(
                    f"{self.where}: message {self.number}: {wrong[0]} is 0 or 1, and in an assistant's message; the "
                    f"role {self._said!r} is never trained (data.ignore_fields=[{self._name}.{wrong[0]}])."
                )
            return None
        if len(set(found.values())) > 1:
            raise BadRow(f"{self.where}: message {self.number}: {' and '.join(found)} say different things.")
        return next(iter(found.values()), None)


def _text_of(content: Any) -> Any:
    """The text of a checked message, its parts joined; a tool's result may also be a mapping."""
    return "".join(part["text"] for part in content) if isinstance(content, list) else content


def _is_blank(content: Any) -> bool:
    text = _text_of(content)
    return isinstance(text, str) and not text.strip()


def _goes_on(last: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether a message is one more call of the assistant's, whose last message was a text or a call."""
    both = last["role"] == entry["role"] == "assistant"
    return (
        both
        and "tool_calls" in entry
        and _is_blank(entry["content"])
        and (last.get("weight") == 0) == (entry.get("weight") == 0)
        and not ("reasoning_content" in last and "reasoning_content" in entry)
    )


def _check_order(roles: list[str], where: str) -> None:
    turns = roles[1:] if roles[0] == "system" else roles
    if "system" in turns:
        place = turns.index("system")
        previous = turns[place - 1] if place else "system"
        raise BadRow(
            f"{where}: a system message can only be the first one, and one follows {previous!r}: put its text into the "
            "first one or into the next user message, or leave such rows out with data.on_bad_row=skip."
        )
    user_next, previous = True, ""
    for i, role in enumerate(turns):
        is_user_side = role != "assistant"
        if is_user_side != user_next and not (role == "tool" and previous == "tool"):
            fix = _JOIN if previous else "begin with what it answers, or leave such rows out with data.on_bad_row=skip"
            raise BadRow(
                f"{where}: roles must alternate user/assistant, but {role!r} follows {previous or 'nothing'!r}: {fix}."
            )
        if i == 0 and role != "user":
            raise BadRow(f"{where}: the conversation must begin with the user (after a system text).")
        user_next, previous = not is_user_side, role
