"""`data=translation`: a text or an image in one language, and its translation into another, for TranslateGemma."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.config.data import LANGUAGES
from gemma_tune.data.conversation import as_messages, conversation
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields
from gemma_tune.data.sources import Source, map_rows

_ASKED = ("text", "source")
_ANSWER = ("translation", "target")


def fits(row: Mapping[str, Any], data: DataConfig) -> bool:
    """Whether a row is of this format."""
    asked = any(name in row for name in (*_ASKED, "image"))
    return asked and all(name in row for name in LANGUAGES) and (data.prompts_only or any(n in row for n in _ANSWER))


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one conversation per row: the text or the image with its languages, and its translation."""

    def record(fields: RowFields) -> Record:
        part: dict[str, Any] = {name: fields.text(name) for name in LANGUAGES}
        name = next((name for name in (*_ASKED, "image") if fields.has(name)), _ASKED[0])
        if name == "image":
            part["type"] = "image"  # the row's
        else:
            part |= {"type": "text", "text": fields.text(name)}
        answer = next((n for n in _ANSWER if fields.has(n)), _ANSWER[0])
        said = []
        if fields.has(answer) or not data.prompts_only:
            said = as_messages(fields.text(answer), "assistant", answer, fields)
        return conversation(fields, [{"role": "user", "content": [part]}, *said], data, [name, *[answer] * len(said)])

    return map_rows(source, record, data)
