"""What to set for rows of no known format: each advice is tried on the row before it is given."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.file_rows import Row
from gemma_tune.data.folders import setting
from gemma_tune.data.formats.chat_log import message_time
from gemma_tune.data.known_fields import CALL, HISTORY, MEDIA, ROLES, SYSTEM, TOOLS
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields, structure_in
from gemma_tune.data.sources import OpenRows

# Common field names of a question and its answer, and those that mean it wherever they stand
_QUESTIONS = ("prompt", "problem", "question", "instruction", "query", "input", "source", "user", "human", "request")
_ANSWERS = (
    "completion", "answer", "answers", "solution", "ground_truth", "response", "output", "target", "assistant", "reply",
)  # fmt: skip
_INNER_QUESTIONS, _INNER_ANSWERS = _QUESTIONS[:5], _ANSWERS[:7]
# Names of the text in an object: SQuAD's, TriviaQA's, a message's
_TEXTS = ("text", "value", "content", "answer", "ground_truth", "solution", "output", "response")
# Of an image or a sound
_OF_MEDIA = ("caption", "text", "transcription", "transcript", "sentence", "description", "label")
_SENDERS = ("sender", "from", "role", "speaker", "author", "user", "from_name", "name")
_SAID = ("text", "message", "content", "body")
_LOGS = re.compile(
    r"(conversation|conv|dialog|dialogue|thread|session|chat|message_?tree|ticket|case|issue|call|interaction)"
    r"[ _-]?(id|uuid|key|nr|no|num|number|ref)?",
    re.IGNORECASE,
)
_PLACES = ("channel", "room", "group")  # of many conversations, in most logs
_TIMES = (
    "time", "timestamp", "created_at", "createdat", "created", "sent_at", "sentat", "datetime", "date", "ts",
    "create_time", "message_time",
)  # fmt: skip
LOOKED_AT = 1000  # rows by which the columns of a chat log are told apart
_FEW = 3  # rows that tell nothing about a column
Settings = dict[str, Any]


def advice(row: Row, data: DataConfig, rows: Sequence[Mapping[str, Any]] = ()) -> str:
    """The settings that read a row, and the fields that they don't use.

    Args:
        row: File and line, and the fields.
        data: How rows are read now.
        rows: The first rows of the file, by which the columns of a chat log are told apart.
    """
    # Media are read beside whatever the settings name
    fields = {name: value for name, value in row[1].items() if name not in MEDIA}
    has_media, row = len(fields) < len(row[1]), (row[0], fields)
    for what, settings in _candidates(fields, data):
        read = _read(row, replace(data, **settings))
        if isinstance(read, Record):
            more = ""
            if "prompt" in fields and not settings.get("prompts_only"):
                more = " For prompts alone, with rewards: data.prompts_only=true."
            return f"{_said(what, settings, read.unused)}{more}"
    sender, said = (next(iter(_as_written(fields, names)), None) for names in (_SENDERS, _SAID))
    if sender and said and sender != said:
        return _chat_log(row, sender, said, rows or [fields])
    if "text" in fields and not has_media:
        return (
            f"{_said('For running text', {'format': 'text'}, _others(fields, {'text'}))} For a chat log of one message "
            "a row: data=chat_log."
        )
    prompt = next(iter(_paths(fields, _QUESTIONS, _INNER_QUESTIONS)), "…")
    answers = [*_paths(fields, _ANSWERS, _INNER_ANSWERS), *(_as_written(fields, _OF_MEDIA) if has_media else ())]
    completion = next((path for path in answers if path != prompt), "…")
    system = next(iter(_as_written(fields, SYSTEM)), None)
    settings = _columns(prompt, completion, system)
    known = {prompt.split(".")[0], completion.split(".")[0], system, HISTORY, *TOOLS}
    more = " Write a question into each row: what the model is asked about the medium." if has_media else ""
    return _said("For a question and its answer", settings, _others(fields, known)) + more * (
        prompt == "…" != completion
    )


def _candidates(fields: Mapping[str, Any], data: DataConfig) -> Iterator[tuple[str, Settings]]:
    """Settings that may read a row, the likeliest first, each with what it is for."""
    chats = [name for name, value in _with_inner(fields) if name and _is_chat(value)]  # no key can name ""
    for name in chats:
        yield f"For the conversation in {name}", {"format": "messages", "messages_column": name}
    system = next((name for name in _as_written(fields, SYSTEM) if fields.get(name)), None)
    for prompt in [*_paths(fields, _QUESTIONS, _INNER_QUESTIONS), *chats]:
        for completion in _paths(fields, _ANSWERS, _INNER_ANSWERS):
            if completion != prompt:
                yield "For a question and its answer", _columns(prompt, completion, system)
    for name in chats:
        settings = {"format": "messages", "messages_column": name, "prompts_only": True}
        yield f"For the prompts in {name}, with rewards", settings


def _columns(prompt: str, completion: str, system: str | None) -> Settings:
    found = {"format": "columns", "prompt_column": prompt, "completion_column": completion}
    return found | ({"system_column": system} if system else {})


def _read(row: Row, data: DataConfig) -> Record | BadRow:
    reader = importlib.import_module(f"gemma_tune.data.formats.{data.format}")
    found: Record | BadRow = next(reader.read(OpenRows(iter([row])), data))
    return found


def _said(what: str, settings: Settings, unused: Iterable[str]) -> str:
    words = [f"data={settings['format']}"]
    for key, value in settings.items():
        if key != "format":
            words.append(
                f"data.{key}={value}"
                if value == "…"
                else setting(f"data.{key}", str(value).lower() if value is True else value)
            )
    left = ", ".join(unused)
    return f"{what}: {' '.join(words)}" + (f", which doesn't use {left}." if left else ".")


def _conversation_of(
    fields: Mapping[str, Any], taken: Collection[str], rows: Sequence[Mapping[str, Any]]
) -> str | None:
    """The column that tells conversations apart: by its name, and since some of its values stand in several rows.

    One value in all rows tells nothing apart, and one of its own in each names the message.
    """
    found = [n for n in fields if _LOGS.fullmatch(n)] + _as_written(fields, _PLACES)
    for name in (n for n in found if n not in taken):
        values = Counter(str(row.get(name)) for row in rows)
        if len(rows) <= _FEW or 1 < len(values) < len(rows):
            return name
    return None


def _time_of(fields: Mapping[str, Any], taken: Collection[str], where: str) -> str | None:
    for name in _as_written(fields, _TIMES):
        with contextlib.suppress(BadRow):
            if name not in taken:
                message_time(RowFields(where, fields), name)
                return name
    return None


def _chat_log(row: Row, sender: str, said: str, rows: Sequence[Mapping[str, Any]]) -> str:
    where, fields = row
    log = _conversation_of(fields, (sender, said), rows)
    time = _time_of(fields, (sender, said, log or ""), where)
    words = ["data=chat_log", setting("data.sender_column", sender), setting("data.message_column", said)]
    words += [setting("data.conversation_column", log)] if log else []
    words += [setting("data.time_column", time)] if time else []
    ways = [] if log else ["data.conversation_column names the field of its conversation"]
    if ROLES.get(str(fields[sender]).strip().lower(), CALL) == CALL:
        ways.append("data.assistant_senders=[…] the senders that are the assistant")
    return f"For a chat log of one message a row: {' '.join(words)}" + (f"; {'; '.join(ways)}." if ways else ".")


def _others(fields: Mapping[str, Any], used: Iterable[str | None]) -> list[str]:
    return [name for name in fields if name not in set(used)]


def _with_inner(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields, and those of the objects among them."""
    yield from fields.items()
    for name, value in fields.items():
        value = structure_in(value)
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", entry) for inner, entry in value.items())


def _as_written(fields: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of some names that the fields have, as they write them: `Question`, `QUESTION`."""
    written: dict[str, str] = {}
    for name in fields:
        written.setdefault(name.strip().lower().replace(" ", "_"), name)
    return [
        name if name in fields else written[name.lower()] for name in names if name.lower() in written or name in fields
    ]


def _paths(fields: Mapping[str, Any], names: tuple[str, ...], inner: tuple[str, ...]) -> list[str]:
    """The fields of some names that hold a text, or messages, and those within objects."""
    found = [(name, fields[name]) for name in _as_written(fields, names)]
    found += [(path, value) for path, value in _with_inner(fields) if path.partition(".")[2].lower() in inner]
    return [path for name, value in found if (path := _text_in(name, value))]


def _text_in(name: str, value: Any) -> str | None:
    """The path to the text of a value, or to its messages; None where it has none."""
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return name
    if isinstance(value, list):
        if not value:  # in this row
            return f"{name}.0"
        whole = all(isinstance(entry, dict) and entry.keys() & {"role", "from", "arguments"} for entry in value)
        return name if whole else _text_in(f"{name}.0", value[0])
    if isinstance(value, dict) and not value.keys() & {"role", "from"}:
        return next((path for key in _TEXTS if key in value and (path := _text_in(f"{name}.{key}", value[key]))), None)
    return name if isinstance(value, dict) else None


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
