"""`data=chat_log`: a chat log, one message a row: its conversation, its sender, its text, perhaps its time."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.conversation import answers_to_train
from gemma_tune.data.known_fields import CALL, ROLES
from gemma_tune.data.messages import checked_messages
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields
from gemma_tune.data.sources import Source, row_fields

_COLUMNS = ("data.conversation_column", "data.sender_column", "data.message_column")
_OPENING = "messages before the user's first"
# Whole numbers as Python and pandas write their floats: 7.0, 1.0521234567890125e+18, 1e+18
_FLOAT = re.compile(r"-?(?:0|[1-9]\d*)(?:\.0+|(?:\.\d+)?e\+\d{2,3})")
_FEW, _USERS = 3, 2  # rows that may well be one conversation; senders of one that may all be the user
_EXACT = 2**53  # whole numbers below have a float of their own


@dataclass
class _Log:
    """The rows of one conversation, in the file's order."""

    where: str
    said: list[tuple[Any, str, str]] = field(default_factory=list)  # time, sender, text
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    unused: dict[str, None] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)
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
    logs: dict[str, _Log] = {}
    columns = [*_COLUMNS, *(["data.time_column"] if data.time_column else [])]
    for fields in row_fields(source, data):
        if isinstance(fields, BadRow):
            yield fields
            continue
        try:
            fields.require_all({key: str(getattr(data, key.removeprefix("data."))) for key in columns})
            key = _conversation(fields, data.conversation_column)
        except BadRow as error:
            yield error
            continue
        log = logs.setdefault(key, _Log(fields.where))
        try:
            _add(log, fields, data)
        except BadRow as error:
            log.bad = log.bad or error
    doubts = tuple(_doubts(logs, data))
    for log in logs.values():
        try:
            record = log.bad or _record(log, data)
        except BadRow as error:
            yield error
            continue
        if isinstance(record, Record) and doubts:
            record, doubts = record.with_remarks(doubts=doubts), ()
        yield record


def _doubts(logs: Mapping[str, _Log], data: DataConfig) -> Iterator[str]:
    """Why the column of the conversations may be another one."""
    key, rows = f"data.conversation_column={data.conversation_column}", sum(len(log.said) for log in logs.values())
    if len(logs) == 1 and rows > _FEW:
        yield (
            f"{key} has one value in all {rows:,} rows, so the whole file is one conversation; name the column that "
            "tells conversations apart."
        )
    users = {log.where: dict.fromkeys(s for _, s, _ in log.said if not _is_other(s, data)) for log in logs.values()}
    if several := {where: senders for where, senders in users.items() if len(senders) > _USERS}:
        where, senders = next(iter(several.items()))
        yield (
            f"{key}: {len(several):,} of {len(logs):,} conversations have messages of more than {_USERS} senders that "
            f"are the user, as if it held many customers' ({where}: {', '.join(list(senders)[:_FEW])}, …); name the "
            "column that tells conversations apart, and all of the assistant in data.assistant_senders."
        )


def _is_other(sender: str, data: DataConfig) -> bool:
    """Whether a sender is the assistant or the system."""
    if data.assistant_senders:
        return sender in data.assistant_senders or sender.lower() == "system"
    return ROLES.get(sender.lower(), "user") != "user"


def _conversation(fields: RowFields, column: str) -> str:
    """A row's conversation: `1`, `1.0` and "1" are one, since tables with missing cells make numbers floats.

    Raises:
        BadRow: It is missing, or a number too large for a float to tell it from the next.
    """
    text = fields.text(column, "data.conversation_column").strip()
    if not _FLOAT.fullmatch(text):
        return text
    number = Decimal(text)
    if abs(number) >= _EXACT:
        raise BadRow(
            f"{fields.where}: the conversation {text} is a number with a decimal point, and too large for its last "
            f"digits to be right; write the field {column!r} as text or as whole numbers (pandas: dtype str or Int64)."
        )
    return str(int(number))


def _add(log: _Log, fields: RowFields, data: DataConfig) -> None:
    sender = fields.text(data.sender_column, "data.sender_column")
    text = fields.text(data.message_column, "data.message_column")
    time = message_time(fields, data.time_column) if data.time_column else None
    log.unused |= dict.fromkeys(fields.left())
    log.missing |= fields.missing
    log.ignored |= fields.ignored
    log.said.append((time, sender, text))
    log.rows.append(fields.row)


def message_time(fields: RowFields, name: str) -> float:
    """The time of a message of a chat log, in seconds: a number, or a text as ISO 8601 writes it.

    Raises:
        BadRow: It is missing, or neither.
    """
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
            names = log.ignored if _OPENING in data.ignore_fields else log.unused
            names[_OPENING] = None
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
    messages = answers_to_train(messages, log.where, data)
    record = Record(log.where, messages=messages, row={"messages": list(log.rows)})
    return record.with_remarks(unused=tuple(log.unused), missing=tuple(log.missing), ignored=tuple(log.ignored))


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
