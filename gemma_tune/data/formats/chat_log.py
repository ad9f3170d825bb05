"""`data=chat_log`: a chat log, one message a row: its conversation, its sender, its text, perhaps its time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.conversation import last_only
from gemma_tune.data.known_fields import CALL, ROLES
from gemma_tune.data.messages import checked_messages
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields
from gemma_tune.data.sources import Source, read_rows

_OPENING = "messages before the user's first"


@dataclass
class _Log:
    """The rows of one conversation, in the file's order."""

    where: str
    said: list[tuple[Any, str, str]] = field(default_factory=list)  # time, sender, text
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    unused: dict[str, None] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)
    bad: BadRow | None = None


def fits(row: Mapping[str, Any], data: DataConfig) -> bool:
    """Never: which senders are the assistant must be said."""
    return False


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one record per conversation, in the order of their first rows.

    Messages of a conversation that follow one another from one side are one turn. What the assistant says before the
    user's first message has no place in Gemma's chats and is left out, and listed as not used. A row that can't be used
    makes its whole conversation a bad one.
    """
    logs: dict[Any, _Log] = {}
    for row in read_rows(source):
        if isinstance(row, BadRow):
            yield row
            continue
        fields = RowFields(*row, data.ignore_fields)
        try:
            key = fields.text(data.conversation_column, "data.conversation_column")
        except BadRow as error:
            yield error
            continue
        log = logs.setdefault(key, _Log(fields.where))
        try:
            _add(log, fields, data)
        except BadRow as error:
            log.bad = log.bad or error
        log.rows.append(row[1])
    for log in logs.values():
        if log.bad:
            yield log.bad
            continue
        try:
            yield _record(log, data)
        except BadRow as error:
            yield error


def _add(log: _Log, fields: RowFields, data: DataConfig) -> None:
    sender = fields.text(data.sender_column, "data.sender_column")
    text = fields.text(data.message_column, "data.message_column")
    time = _time(fields, data.time_column) if data.time_column else None
    log.unused |= dict.fromkeys(fields.left())
    log.missing |= fields.missing
    log.said.append((time, sender, text))


def _time(fields: RowFields, name: str) -> float:
    value = fields.require(name, "Set data.time_column.")
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(number := float(value)):
            return number
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError):
        raise BadRow(
            f"{fields.where}: the field {name!r} is {str(value)[:40]!r}, no number and no time like "
            "2026-01-31T12:00:00; leave data.time_column out where the file is in order."
        ) from None


def _record(log: _Log, data: DataConfig) -> Record:
    ordered = sorted(log.said, key=lambda m: m[0]) if data.time_column else log.said  # a stable order
    turns: list[dict[str, Any]] = []
    for _, sender, text in ordered:
        role = _role(sender, data, log.where)
        if role == "assistant" and all(m["role"] == "system" for m in turns):
            log.unused[_OPENING] = None
        elif turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n{text}"
        else:
            turns.append({"role": role, "content": text})
    if not any(m["role"] == "assistant" for m in turns):
        senders = ", ".join(dict.fromkeys(sender for _, sender, _ in ordered))
        raise BadRow(
            f"{log.where}: no message of this conversation answers the user's; its senders: {senders}. Name those of "
            "the assistant: data.assistant_senders=[…], or leave such conversations out with data.on_bad_row=skip."
        )
    messages = checked_messages(turns, log.where, not data.prompts_only)
    messages = last_only(messages) if data.answers == "last" else messages
    record = Record(log.where, messages=messages, row={"messages": list(log.rows)})
    return replace(record, unused=tuple(log.unused), missing=tuple(log.missing))


def _role(sender: str, data: DataConfig, where: str) -> str:
    if data.assistant_senders:
        if sender in data.assistant_senders:
            return "assistant"
        return "system" if sender.lower() == "system" else "user"
    role = ROLES.get(sender.lower())
    if role is None or role in (CALL, "tool"):
        raise BadRow(
            f"{where}: the sender {sender!r} is no known role; name the senders that are the assistant: "
            "data.assistant_senders=[…]. All others are the user."
        )
    return role
