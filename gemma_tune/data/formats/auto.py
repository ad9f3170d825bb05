"""`data=auto`: recognises the format by the fields of a file's first row."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.config.data import FORMATS
from gemma_tune.data.file_rows import Row
from gemma_tune.data.known_fields import CONVERSATIONS, HISTORY, SYSTEM, TOOLS
from gemma_tune.data.records import BadRow
from gemma_tune.data.row_fields import structure_in

# Common field names of a question and its answer, for the message.
_QUESTIONS = ("prompt", "problem", "question", "instruction", "query", "input", "source", "user", "human", "request")
_ANSWERS = (
    "completion", "answer", "answers", "solution", "ground_truth", "response", "output", "target", "assistant", "reply",
)  # fmt: skip
_SENDERS = ("sender", "from", "role", "speaker", "author", "user", "from_name", "name")
_SAID = ("text", "message", "content", "body")


def recognise_format(rows: Iterator[Row | BadRow], data: DataConfig) -> tuple[str | None, Iterator[Row | BadRow]]:
    """The format whose fields the first row has, or None; where bad rows are skipped, the first row that fits one.

    Args:
        rows: All rows of a source.
        data: Names of fields, and what happens to bad rows.

    Returns:
        The format's name, and all rows from the first on.
    """
    looked_at = []
    for row in rows:
        looked_at.append(row)
        if not isinstance(row, BadRow):
            for name in FORMATS:
                if importlib.import_module(f"gemma_tune.data.formats.{name}").fits(row[1], data):
                    return name, chain(looked_at, rows)
        if data.on_bad_row != "skip":
            break
    return None, chain(looked_at, rows)


def refuse_rows(rows: Iterable[Row | BadRow]) -> Iterator[BadRow]:
    """A BadRow for each row of a file whose format isn't recognised; it says what to set."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        where, fields = row
        yield BadRow(
            f"{where}: the fields {', '.join(fields) or '(none)'} are those of no known format (messages; "
            "conversations; prompt and completion; chosen and rejected; instruction and output; text alone). "
            + _advice(fields)
        )


def _advice(fields: Mapping[str, Any]) -> str:
    """What to set for a row of no known format; fields that the settings would not use are named."""
    sender, said = (next((n for n in names if n in fields), None) for names in (_SENDERS, _SAID))
    if "text" in fields and not sender:
        return (
            f"For running text: data=text, which doesn't use {_listed(fields, {'text'})}; for a chat log of one "
            "message a row: data=chat_log."
        )
    if sender and said and sender != said and not set(_ANSWERS) & fields.keys():
        return (
            f"For a chat log of one message a row: data=chat_log data.sender_column={sender} "
            f"data.message_column={said}, and data.conversation_column for its conversations."
        )
    chat = next((n for n, v in fields.items() if n not in CONVERSATIONS and _is_chat(v)), None)
    if chat:
        return f"For the conversation in {chat}: data=messages data.messages_column={chat}."
    prompt, completion = (next((n for n in names if n in fields), "…") for names in (_QUESTIONS, _ANSWERS))
    used = {prompt, completion, HISTORY, *SYSTEM[:1]} | set(TOOLS)
    words = f"data=columns data.prompt_column={prompt} data.completion_column={completion}"
    if system := next((n for n in SYSTEM if n in fields), None):
        words += f" data.system_column={system}"
        used.add(system)
    left = _listed(fields, used)
    return (
        f"For a question and its answer: {words}"
        + (f", which doesn't use {left}." if left else ".")
        + (" For prompts alone, with rewards: data.prompts_only=true." if "prompt" in fields else "")
    )


def _listed(fields: Mapping[str, Any], used: set[str]) -> str:
    return ", ".join(name for name in fields if name not in used)


def _is_chat(value: Any) -> bool:
    value = structure_in(value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict) and m.keys() & {"role", "from"} and m.keys() & {"content", "value", "parts"}
            for m in value
        )
    )
