"""From a record to token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from jinja2 import TemplateError

from gemma_tune.chat import Rendered, Unrenderable, answers_apart, render_chat, render_text
from gemma_tune.chat.forms import thinking_of
from gemma_tune.data.known_fields import MEDIA, THINKING, TOOLS
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import is_empty, structure_in


class Sided(Protocol):
    """What is rendered of a record: one row, or the two of a pair."""

    @property
    def sides(self) -> Sequence[Rendered]:
        """The rows."""
        ...


def render_record(record: Record, tokenizer: Any) -> Rendered:
    """A row as the model sees it, not cut.

    Raises:
        BadRow: The chat template can't render something in it.
    """
    if record.messages is None:
        return render_text(tokenizer, record.text or "")
    try:
        return render_chat(tokenizer, record.messages, record.tools)
    except (Unrenderable, TemplateError) as error:
        raise unrenderable(record, error) from error


def render_row(record: Record, tokenizer: Any, labels: bool) -> Rendered:
    """As `render_record`; `labels` says whether the row may hold a bad answer, since it is shown and not trained."""
    if not labels:
        refuse_bad_answer(record)
    return render_record(record, tokenizer)


def fit_row(row: Rendered, max_length: int) -> tuple[Rendered | None, bool]:
    """The first `max_length` tokens, or None where none of them is trained; and whether the row was cut."""
    cut = row.cut(max_length)
    return (cut if cut.trained_tokens else None), len(row.input_ids) > max_length and not row.media


def unrenderable(record: Record, error: Exception) -> BadRow:
    """What the chat template can't render of a record, with the names that read the row without its thinking."""
    names = dict.fromkeys(_thinking("", record.row)) if any(map(thinking_of, record.messages or ())) else {}
    way = (
        f" data.ignore_fields=[{','.join(names)}] reads the rows without it."
        if names and "thinking" in str(error)
        else ""
    )
    if record.messages is not None and "no place for" in str(error):
        way = _without_tools(record) if "tools" in str(error) else _without_media(record) or way
    return BadRow(f"{record.where}: {error}{way}")


def _without_tools(record: Record) -> str:
    """The key that reads a row without its tools, or, where it has calls of them, leaves it out."""
    calls = any(m.get("tool_calls") or m["role"] == "tool" for m in record.messages or ())
    names = [name for name in TOOLS if name in record.row]
    if calls or not names:
        return " data.on_bad_row=skip leaves such rows out."
    return f" data.ignore_fields=[{','.join(names)}] reads the rows without them; data.on_bad_row=skip leaves them out."


def _without_media(record: Record) -> str:
    """The same of a row without its images, sound and video, where they stand in fields of their own."""
    fields = [name for name in MEDIA if not is_empty(record.row.get(name))]
    if not any(isinstance(m.get("content"), list) for m in record.messages or ()):
        return ""
    if not fields:
        return " data.on_bad_row=skip leaves such rows out."
    return (
        f" data.ignore_fields=[{','.join(fields)}] reads the rows without them; data.on_bad_row=skip leaves them out."
    )


def _thinking(place: str, value: Any) -> Iterator[str]:
    """The fields of a row, and of its messages, that hold thinking."""
    value = structure_in(value)
    if isinstance(value, list):
        for entry in value:
            yield from _thinking(place, entry)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name in THINKING and isinstance(inner, str) and inner.strip():
                yield f"{place}{name}"
            elif name not in ("content", "parts"):  # their parts have no names to ignore
                yield from _thinking(f"{place}{name}.", inner)


def refuse_bad_answer(record: Record) -> None:
    """Refuses a record of a reader of the user's own whose answer would be trained or compared with as a good one.

    Raises:
        BadRow: Its label says that the answer is a bad one.
    """
    if record.desirable is False:
        raise BadRow(
            f"{record.where}: desirable=False says that this answer is a bad one, which must not be taken for a good "
            "one: recipe=kto learns from both; data.on_bad_row=skip leaves such rows out."
        )


def split_answers(records: Iterable[Record], tokenizer: Any) -> Iterator[Record]:
    """The records; where each answer needs a prompt of its own, one record for each answer (see `answers_apart`)."""
    for record in records:
        rows = [None] if record.messages is None else answers_apart(tokenizer, record.messages)
        yield from (record if m is record.messages else replace(record, messages=m) for m in rows)


def find_records(
    records: Iterable[Record], keys: Callable[[Record], set[tuple[int, ...]]], wanted: Sequence[Sequence[int]]
) -> list[str]:
    """Where the records stand that become the wanted rows; reading stops when all are found.

    Args:
        records: As read.
        keys: The rows that a record becomes, each as token ids.
        wanted: Rows as token ids.

    Returns:
        `file:line` of each that is found; of equal rows only the first.
    """
    left, found = {tuple(ids) for ids in wanted}, []
    for record in records:
        try:
            rows = keys(record)
        except BadRow:  # training leaves it out, too
            continue
        if rows & left:
            found.append(record.where)
            left -= rows
        if not left:
            break
    return found
