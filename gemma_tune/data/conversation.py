"""From the fields of a row to its record: what stands beside a conversation is the same for every format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.json_decoder import refuse_two_values
from gemma_tune.data.known_fields import HISTORY, ROLES, ROW_SWITCHES, SYSTEM, THINKING, TOOLS, is_thinking, switch_of
from gemma_tune.data.media_fields import row_media, with_media
from gemma_tune.data.messages import Messages, checked_messages, plain
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields, is_empty, structure_in
from gemma_tune.data.tools import Tools, checked_tools

# What NumPy prints of an array of messages has no commas, and Python's text of other objects can't be read back.
_LIST_OF_MESSAGES = re.compile(
    r"""\s*(?:array\()?\[\s*\{.*?['"](?:role|from)['"]\s*:\s*['"](?:user|assistant|system|human|gpt|model|tool)['"]""",
    re.DOTALL,
)
_BEGINNING = 5000
_CALLS = ("tool_calls", "function_call")
_CALL = frozenset({"name", "arguments", "id", "type"})
KNOWN = frozenset({*ROLES.values(), "function_call"})


def conversation(fields: RowFields, messages: Any, data: DataConfig, name: str | Sequence[str] = "messages") -> Record:
    """The record of a conversation, with the system text, history, tools and switches that stand beside it.

    Args:
        fields: The row.
        messages: The conversation as it was read, or its list as text.
        data: How rows are read.
        name: The conversation's field, or that of each message.

    Raises:
        BadRow: The row can't be used.
    """
    tools = row_tools(fields, data)
    refuse_two_values(messages, fields.where)
    given, messages = messages, plain(messages)
    if isinstance(given, str) and not isinstance(messages, list):
        refuse_printed(given, str(name), fields.where)
    messages = with_thinking(fields, _switched(fields, messages))
    messages, names = opened(fields, messages, name, [n for n in fields.named(SYSTEM) if fields.is_used(n)])
    messages = with_media(fields, row_media(fields), messages)
    clean = checked_messages(messages, fields.where, not data.prompts_only, fields, names, tools)
    return Record(fields.where, messages=answers_to_train(clean, fields.where, data), tools=tools)


def row_tools(fields: RowFields, data: DataConfig) -> Tools | None:
    """The tools of a row: of `data.tools_column`, else of the first known name that it has."""
    own = [data.tools_column] if fields.has(data.tools_column) else []
    name = next((name for name in (*own, *fields.named(TOOLS)) if not _no_value(fields, name)), None)
    try:
        return checked_tools(fields.get(name), fields.where) if name else None
    except BadRow as error:
        said = str(error).removeprefix(f"{fields.where}: ")
        raise BadRow(f"{fields.where}: {said}" if str(name) in said else f"{fields.where}: {name}: {said}") from error


def opened(
    fields: RowFields, messages: Any, name: str | Sequence[str], taken: Sequence[str] = ()
) -> tuple[Any, str | Sequence[str]]:
    """The messages with the system text and the history that the row has beside them.

    Args:
        fields: The row.
        messages: The conversation as `plain` gives it.
        name: Its field, or that of each message.
        taken: Fields with a system text's name that the messages hold already.

    Returns:
        The messages, and the field of each.

    Raises:
        BadRow: There are two system texts that differ, or the history has an unknown form.
    """
    if not isinstance(messages, list):
        return messages, name
    system = next((name for name in fields.named(SYSTEM) if name not in taken), None)
    earlier = next(iter(fields.named([HISTORY])), None)
    if not system and not earlier:
        return messages, name
    names = [name] * len(messages) if isinstance(name, str) else list(name)
    text: Any = _system_text(fields, system) if system else ""
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    opening = messages[:1] if first.get("role") == "system" else []
    if text and opening and str(first.get("content", first.get("value"))).strip() != text.strip():
        raise BadRow(
            f"{fields.where}: the field {system!r} and the first message are two system texts; keep one "
            f"(data.ignore_fields=[{system}])."
        )
    body, body_names = messages[len(opening) :], names[len(opening) :]
    opening_names = names[: len(opening)]
    if text and not opening:
        opening, opening_names = [{"role": "system", "content": text}], [str(system)]
    history = _history(fields, earlier) if earlier else []
    return [*opening, *history, *body], [*opening_names, *[str(earlier)] * len(history), *body_names]


def _system_text(fields: RowFields, name: str) -> Any:
    value = fields.get(name)
    if isinstance(value, dict | list):  # Gemini's, Anthropic's, or a message
        parts = value.get("parts", value.get("content")) if isinstance(value, dict) else value
        parts = [{"text": parts}] if isinstance(parts, str) else [parts] if isinstance(parts, dict) else parts
        if not isinstance(parts, list) or not all(
            isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts
        ):
            raise BadRow(f"{fields.where}: the field {name!r} has no parts with a text.")
        return "".join(part["text"] for part in parts)
    return fields.optional_text(name)


def _history(fields: RowFields, name: str) -> Messages:
    """Earlier turns: pairs of a question and its answer, as LLaMA-Factory has and trains them, or messages."""
    if _no_value(fields, name):
        return []
    given = fields.get(name)
    refuse_two_values(given, fields.where)
    value = plain(given)
    if is_empty(value):
        return []
    if isinstance(value, list) and all(isinstance(m, dict) for m in value):
        return value
    pairs = value if isinstance(value, list) else None
    if pairs is None or any(
        not isinstance(p, list | tuple) or len(p) != 2 or not all(isinstance(t, str) for t in p) for p in pairs
    ):
        raise BadRow(f"{fields.where}: the field {name!r} isn't a list of pairs of texts, or of messages.")
    return [{"role": r, "content": t} for pair in pairs for r, t in zip(("user", "assistant"), pair, strict=True)]


def _is_answer(message: Any) -> bool:
    """Whether a message, as `plain` gives it, is the assistant's."""
    return isinstance(message, dict) and message.get("role") in ("assistant", "function_call")


def _no_value(fields: RowFields, name: str) -> bool:
    """Whether a cell only says that there is no value (`nan`, `None`); it is counted, and used up."""
    return fields.check_missing(name, fields.peek(name)) and fields.get(name) is not None


def _switched(fields: RowFields, messages: Any) -> Any:
    """The messages with the row's switches (`loss_mask`, `train`, …) as weights of its answers.

    A list has an entry for each message, or for each answer.

    Raises:
        BadRow: A switch has another form; the message names it and `weight`.
    """
    named = fields.named(ROW_SWITCHES)
    if not named or not isinstance(messages, list):
        return messages
    for name in named:
        value = structure_in(fields.get(name))
        answers = [i for i, m in enumerate(messages) if _is_answer(m)]
        try:
            if isinstance(value, list):
                places = range(len(messages)) if len(value) == len(messages) else answers
                said = dict(zip(places, map(switch_of, value), strict=True))
            else:
                said = dict.fromkeys(answers, switch_of(value))
        except (ValueError, TypeError):
            raise BadRow(
                f"{fields.where}: the field {name!r} isn't 0 or 1 (false or true), nor a list of these with an entry "
                "for each message or each answer: write `weight: 0` into each answer that isn't to be trained, or set "
                f"data.ignore_fields=[{name}]."
            ) from None
        off = {i for i in answers if said.get(i) == 0}
        messages = [{**m, "weight": 0} if i in off else m for i, m in enumerate(messages)]
    return messages


def with_thinking(fields: RowFields, answer: Any) -> Any:
    """A conversation, its last answer with the thinking and the calls that stand in fields beside it."""
    if not isinstance(answer, list) or not answer or not _is_answer(answer[-1]):
        return answer
    thinking, calls = fields.named(THINKING), fields.named(_CALLS)
    if not thinking and not calls:
        return answer
    last = dict(answer[-1])
    for name in thinking:
        value = fields.peek(name)
        is_text = isinstance(value, str) and is_thinking(value)
        if is_text and not fields.is_used(name) and not any(last.get(key) for key in THINKING):
            text = fields.optional_text(name)
            last |= {"reasoning_content": text} if text else {}
    for name in calls:
        key = name.rpartition(".")[2]
        if not fields.is_used(name) and not last.get(key):
            last[key] = fields.get(name)
    return [*answer[:-1], last]


def answers_to_train(messages: Messages, where: str, data: DataConfig) -> Messages:
    """The conversation as `data.answers` says: with `last`, only its last answer is trained.

    Raises:
        BadRow: That one is switched off.
    """
    return last_only(messages, None if data.prompts_only else where) if data.answers == "last" else messages


def last_only(messages: Messages, where: str | None = None) -> Messages:
    """The conversation with its last answer trained only.

    Raises:
        BadRow: That one is switched off; only where `where`, file and line, is given.
    """
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if where and messages[answers[-1]].get("weight") == 0:
        raise BadRow(
            f"{where}: the last answer, the only one to train with data.answers=last, is switched off "
            f"({', '.join(ROW_SWITCHES)}): leave such rows out with data.on_bad_row=skip, or set data.answers=all."
        )
    return [{**m, "weight": 0} if i in answers[:-1] else m for i, m in enumerate(messages)]


def as_messages(value: Any, role: str, name: str, fields: RowFields, tools: Sequence[Any] | None = None) -> Messages:
    """A field as messages: a text becomes one message of `role`, and a list of messages stays.

    An answer that is nothing but calls becomes one, where the row has tools.

    Args:
        value: The field's value.
        role: Of a text.
        name: The field, for messages.
        fields: The row.
        tools: The row's tools.

    Raises:
        BadRow: It is neither, or empty.
    """
    where = fields.where
    if value is None and name in fields.missing:
        raise BadRow(f"{where}: the field {name!r} is NaN, a missing value.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    found = plain([value] if isinstance(value, dict) else value)
    if isinstance(found, list) and found and all(isinstance(m, dict) for m in found):
        if all(map(_is_message, found)):
            refuse_two_values(value, where)
            return found
        if isinstance(value, list) and not all(_CALL.issuperset(m) for m in found):
            return found  # the check of its messages says what is wrong
    calls = structure_in(value)
    calls = [calls] if isinstance(calls, dict) else calls
    if tools and role == "assistant" and isinstance(calls, list) and calls and all(map(_is_call, calls)):
        refuse_two_values(value, where)
        return [{"role": role, "content": "", "tool_calls": calls}]
    if isinstance(value, str):
        if not value.strip() and role == "assistant" and fields.named(_CALLS):
            return [{"role": role, "content": ""}]
        if not value.strip():
            raise BadRow(f"{where}: the field {name!r} is empty.")
        refuse_printed(value, name, where)
        return [{"role": role, "content": value}]
    raise BadRow(f"{where}: the field {name!r} is neither a text nor a list of messages.")


def refuse_printed(text: str, name: str, where: str) -> None:
    """Refuses a list of messages as NumPy prints it, without commas, or with objects that can't be read back.

    Raises:
        BadRow: It is one.
    """
    if _LIST_OF_MESSAGES.match(text[:_BEGINNING]):
        raise BadRow(
            f"{where}: the field {name!r} is a list of messages as Python or NumPy prints it, which can't be read "
            'back: write the rows as JSON, df.to_json("rows.jsonl", orient="records", lines=True).'
        )


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and {"name", "arguments"} <= value.keys() <= _CALL


def _is_message(value: dict[str, Any]) -> bool:
    role = value.get("role")  # of any type: a list can't be looked up
    return (
        isinstance(role, str)
        and role in KNOWN
        and bool(value.keys() & {"content", "value", "parts", "tool_calls", "text"})
    )
