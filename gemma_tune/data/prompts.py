"""Reads what `recipe=chat` answers: one prompt, or a file of prompts. Imports no torch."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma_tune.config import ChatConfig, DataConfig
from gemma_tune.data.file_rows import FileOptions
from gemma_tune.data.files import read_file
from gemma_tune.data.json_decoder import refuse_two_values
from gemma_tune.data.known_fields import IGNORE, TRAINING
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.remarks import SILENCES, RowRemarks, remark_lines
from gemma_tune.data.row_fields import is_empty, structure_in
from gemma_tune.data.sources import OpenRows
from gemma_tune.data.tools import checked_tools
from gemma_tune.errors import UserError
from gemma_tune.media.files import check
from gemma_tune.media.kinds import WORDS, UnusableMedium
from gemma_tune.run.paths import file_type, resolve
from gemma_tune.untrusted import parse_json, read_bytes

# The formats that rows of prompts may have, and how they are read: an answer at the end may be missing
_FORMATS = ("messages", "sharegpt", "translation", "prompt_completion", "alpaca", "preference")
_DATA = DataConfig(prompts_only=True)


def user_message(text: str, where: str, role: str = "user", media: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """A text that the user typed, as a message.

    Args:
        text: The text; may be empty beside media.
        where: What it is called in messages to the user.
        role: Of the message.
        media: Parts that stand before the text.

    Raises:
        BadRow: It contains control tokens of the chat template, or bytes that aren't UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{where}: this is not UTF-8 (at character {error.start + 1}).") from error
    message = {
        "role": role,
        "content": [*media, *([{"type": "text", "text": text}] if text else [])] if media else text,
    }
    Record(where, messages=[message])  # refuses control tokens
    return message


def _typed(text: str, where: str) -> dict[str, Any]:
    """A prompt of text alone as a message.

    Raises:
        BadRow: As `user_message`; or it begins with a command of the conversation in the terminal that names a medium.
    """
    command = text.split(maxsplit=1)[0] if text.strip() else ""
    if command.startswith("/") and command[1:] in WORDS:
        raise BadRow(
            f"{where}: {command} puts {WORDS[command[1:]]} before a message in the terminal, and would be sent as text "
            "here: leave the prompt out to talk there, or name rows with media, chat.prompts_file=rows.jsonl."
        )
    return user_message(text, where)


def medium_part(kind: str, name: str) -> dict[str, str]:
    """An image, a sound or a video that the user named, as a part of a message; its file is checked.

    Raises:
        BadRow: The file can't be used.
        UserError: A package is missing that reads it.
    """
    path = os.path.abspath(resolve(name))
    try:
        check(path, kind)
    except UnusableMedium as error:
        raise BadRow(str(error)) from error
    return {"type": kind, kind: path}


def read_tools(chat: ChatConfig) -> list[dict[str, Any]] | None:
    """The tools of `chat.tools_file`, or None without one.

    Raises:
        UserError: Not JSON, or not a list of tools in the OpenAI form.
    """
    if chat.tools_file is None:
        return None
    where = f"chat.tools_file={chat.tools_file}"
    try:
        text = read_bytes(resolve(chat.tools_file)).decode("utf-8-sig")
        refuse_two_values(text, where)
        tools = parse_json(text)
        if not isinstance(tools, list) or not tools:
            raise UserError(
                f"{where}: this is no list of tools; write "
                '[{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}].'
            )
        return checked_tools(tools, where)
    except json.JSONDecodeError as error:
        raise UserError(f"{chat.tools_file}:{error.lineno}: this is not JSON ({error}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: the bytes are not UTF-8; save the file as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{where}: the file can't be read ({error.strerror}).") from error
    except BadRow as error:
        raise _refused(error) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: the file can't be read ({error}).") from error


def _asked(where: str, row: dict[str, Any], folder: Path) -> Record:
    """The prompt of a row, read as its format reads rows, without a last answer.

    What is about training only (a label, weights of answers) is listed with what else is not used. An answer beside
    the prompt may have any form.
    """
    unused: dict[str, None] = {}
    rest = {name: _untrained(value, name, unused) for name, value in row.items() if _is_kept(name, name, value, unused)}
    filled = {name: value for name, value in rest.items() if not is_empty(value)}  # tables of mixed rows have nulls
    name = next((name for fields in (filled, rest) for name in _FORMATS if _format(name).fits(fields, _DATA)), None)
    if name == "prompt_completion":
        rest.pop("completion", None)
    elif name == "alpaca" or (name is None and "instruction" in rest):
        name, rest = "alpaca", {**rest, "output": "-"}  # its reader needs one
    if name is None:
        raise BadRow(
            f"{where}: there is no field 'messages' or 'prompt'; found: {', '.join(row) or 'none'}. Name the field of "
            "the question `prompt`, or that of the conversation `messages`."
        )
    made: Record | BadRow = next(_format(name).read(OpenRows(iter([(where, rest)]), folder), _DATA))
    if isinstance(made, BadRow):
        raise made
    messages = made.messages or []
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if all(m["role"] == "system" for m in messages):
        raise BadRow(f"{where}: the conversation has nothing to answer: no message of the user's.")
    return Record(where, messages=messages, tools=made.tools, unused=(*made.unused, *unused), missing=made.missing)


def _is_kept(name: str, key: str, value: Any, unused: dict[str, None]) -> bool:
    """Whether a field isn't about training; one that is becomes one of those that are not used."""
    if key in TRAINING and value is not None:
        unused[name] = None
    return key not in TRAINING


def _untrained(value: Any, name: str, unused: dict[str, None]) -> Any:
    """A field; if it is a list of messages, without what is about training in them."""
    messages = structure_in(value)
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return value
    return [{k: v for k, v in m.items() if _is_kept(f"{name}.{k}", k, v, unused)} for m in messages]


def _format(name: str) -> Any:
    return importlib.import_module(f"gemma_tune.data.formats.{name}")


def _refused(error: BadRow) -> UserError:
    """The refusal of a row, without what this recipe doesn't read: it has no `data.*`."""
    return UserError(_KEYS.sub("", str(error).replace(IGNORE, " Take it out.")))


# What refusals of rows advise that this recipe doesn't read
_KEYS = re.compile(
    r",? or (?:leave such rows out with data\.on_bad_row=skip|set data\.ignore_fields=\[[^\]]*\])| \(data\.[^)]*\)"
)


def _rows(path: Path) -> Iterator[Record]:
    lines = file_type(path) == ".txt"
    for row in read_file(path, options=FileOptions(sample_by="line")):
        if isinstance(row, BadRow):
            raise row
        if lines:
            yield Record(row[0], messages=[_typed(row[1]["text"].strip(), row[0])])
        else:
            yield _asked(*row, path.parent)


def _file(chat: ChatConfig) -> list[Record]:
    name = f"chat.prompts_file={chat.prompts_file}"
    try:
        found = list(_rows(resolve(str(chat.prompts_file))))
    except OSError as error:
        raise UserError(f"{name}: the file can't be read ({error.strerror}).") from error
    if not found:
        raise UserError(f"{name}: the file holds no prompts.")
    return found


def opening(chat: ChatConfig) -> list[dict[str, Any]]:
    """The messages before the first turn: `chat.system`, if it is set.

    Raises:
        UserError: It contains control tokens of the chat template.
    """
    try:
        return [user_message(chat.system, "chat.system", "system")] if chat.system else []
    except BadRow as error:
        raise UserError(str(error)) from error


def read_chat_prompts(chat: ChatConfig) -> list[Record]:
    """The conversations to answer; none if the user chats in the terminal.

    `chat.system` and `chat.tools_file` are added to rows that have no system text or tools of their own.

    Raises:
        UserError: A bad row (file and line), no rows at all, or tools in a wrong format.
    """
    system, tools = opening(chat), read_tools(chat)
    try:
        if chat.prompts_file is not None:
            found = _file(chat)
        elif chat.prompt is not None:
            found = [Record("chat.prompt", messages=[_typed(chat.prompt, "chat.prompt")])]
        else:
            found = []
    except BadRow as error:
        raise _refused(error) from error
    completed = []
    for record in found:
        messages = record.messages or []
        own_system = messages[0]["role"] == "system"
        messages = messages if own_system else [*system, *messages]
        completed.append(replace(record, messages=messages, tools=record.tools or tools))
    return completed


def prompt_remarks(chat: ChatConfig, records: Iterable[Record]) -> list[str]:
    """What was not used of the file's rows, as lines for the user."""
    lines = remark_lines({str(chat.prompts_file): RowRemarks(records)}, "prompts")
    return [_KEYS.sub("", line.replace(SILENCES, "")) for line in lines]


def check_prompts(chat: ChatConfig, must_talk: bool) -> None:
    """Reads the prompts, so that mistakes in them are reported before torch is imported.

    Args:
        chat: The configuration.
        must_talk: Whether a terminal is needed if the configuration names no prompt.

    Raises:
        UserError: As `read_chat_prompts`; or there is neither a prompt nor a terminal.
    """
    read_chat_prompts(chat)
    asks = chat.prompt is not None or chat.prompts_file is not None
    if must_talk and not asks and not (sys.stdin and sys.stdin.isatty()):
        raise UserError(
            "recipe=chat: there is no terminal to talk in (standard input is not one); set chat.prompt=… for one "
            "answer, or chat.prompts_file=… for many."
        )
