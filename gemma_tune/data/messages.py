"""Conversations as people have them, read as one form: OpenAI's messages, checked.

Taken are OpenAI's `role` and `content`, ShareGPT's `from` and `value`, Gemini's `parts`, and every name of a role that
`known_fields.ROLES` has. No field of a message vanishes: what isn't read is listed (`RowFields.not_used`) or refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemma_tune.data import anthropic, google
from gemma_tune.data.known_fields import CALL, ROLE_NAMES, ROLES, ROW_SWITCHES
from gemma_tune.data.message import ReadMessage, is_blank
from gemma_tune.data.records import BadRow
from gemma_tune.data.row_fields import RowFields, structure_in, structure_of
from gemma_tune.data.tools import Tools

Messages = list[dict[str, Any]]
_SAID = ("system", "user")
_OF_MESSAGES = frozenset((*ROLE_NAMES, "content", "value", "parts", "tool_calls"))
_TURNS = {"input": "user", "output": "assistant"}  # XTuner's names in a turn
_PLAIN = ("system", "user", "assistant", "tool")
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
    messages = structure_of(messages, where)
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{where}: the conversation isn't a list of messages.")
    fields = fields or RowFields(where, {})
    clean: Messages = []
    called: dict[str, str] = {}
    names = [name] * len(messages) if isinstance(name, str) else name
    number = 0
    for given, field in zip(messages, names, strict=True):
        if _is_bare(given) and not fields.ignores:
            number += 1
            fields.check_missing(field, given["content"])
            clean.append({"role": given["role"], "content": given["content"]})
            continue
        for message in _entries(given, where):
            number += 1
            one = ReadMessage(message, number, fields, field)
            _append(clean, one.entry(tools, called))
            one.finish()
    _check_order([m["role"] for m in clean], where)
    answers = [m for m in clean if m["role"] == "assistant"]
    if answered and answers and all(m.get("weight") == 0 for m in answers):
        raise BadRow(
            f"{where}: there is no assistant message to learn from: every answer is switched off "
            f"({', '.join(ROW_SWITCHES)}). Leave such rows out with data.on_bad_row=skip."
        )
    if answered and not answers:
        raise BadRow(
            f"{where}: there is no assistant message to learn from (data.prompts_only=true: rewards need none)."
        )
    return clean


def _is_bare(message: Any) -> bool:
    """Whether a message is a role and a text and nothing else, as most are: it needs no reading."""
    if not isinstance(message, dict) or len(message) != 2:
        return False
    role, content = message.get("role"), message.get("content")
    return isinstance(content, str) and (role in _SAID or (role == "assistant" and bool(content.strip())))


def _append(clean: Messages, entry: dict[str, Any]) -> None:
    """Appends a message; a call that goes on from the assistant's last message becomes part of it."""
    if clean and _goes_on(clean[-1], entry):
        calls = [*clean[-1].get("tool_calls", ()), *entry["tool_calls"]]
        clean[-1] = {**clean[-1], **entry, "content": clean[-1]["content"], "tool_calls": calls}
    else:
        clean.append(entry)


def _entries(message: Any, where: str) -> Iterator[Any]:
    """The message; results of calls that Google's and Anthropic's forms have within one become messages."""
    for entry in google.results(message, where):
        yield from anthropic.results(entry)


def plain(messages: Any) -> Any:
    """The messages of a list, or of the text of one, each with its role under one name, without nulls."""
    messages = structure_in(messages)
    if not isinstance(messages, list):
        return messages
    return [_plain(message) for given in messages for message in _turn(given)]


def _turn(message: Any) -> list[Any]:
    """The message; or those of a turn that has them under the names of their roles (`{"human": …, "assistant": …}`)."""
    given = structure_in(message)
    if not isinstance(given, dict) or not given.keys().isdisjoint(_OF_MESSAGES):
        return [message]
    roles = {name: _TURNS.get(name, ROLES.get(name.lower())) for name, said in given.items() if said}
    roles = {n: role for n, role in roles.items() if role in (*_SAID, "assistant") and isinstance(given[n], str)}
    if not {"user", "assistant"} <= set(roles.values()) or len(set(roles.values())) < len(roles):
        return [message]
    *earlier, last = ({"role": role, "content": given[name]} for name, role in roles.items())
    return [*earlier, {**last, **{name: value for name, value in given.items() if name not in roles}}]


def _plain(message: Any) -> Any:
    given = structure_in(message)
    if not isinstance(given, dict):
        return message
    if given.get("role") in _PLAIN and None not in given.values():
        return given
    kept = {k: v for k, v in given.items() if v is not None}
    key = next((name for name in ROLE_NAMES if name in kept), "role")
    said = kept.get(key)
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        return kept
    del kept[key]
    return {"role": "function_call" if role == CALL else role, **kept}


def _goes_on(last: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether a message is one more call of the assistant's, whose last message was a text or a call."""
    both = last["role"] == entry["role"] == "assistant"
    return (
        both
        and "tool_calls" in entry
        and is_blank(entry["content"])
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
