"""Random rows of every format with random extra fields: each field is used, listed, or refused by its name."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.record_cache import SourceRecords
from gemma_tune.data.records import BadRow, Record

Row = dict[str, Any]
# Names that nobody knows, and names with a meaning
STRANGE = ["category", "id", "source", "score", "lang", "meta", "created_at", "Größe", "a b", "x.y", "index", "turn"]
KNOWN = [
    "system", "system_prompt", "tools", "functions", "history", "weight", "loss", "train", "trainable", "loss_mask",
    "mask", "images", "image", "videos", "audios", "label", "reasoning_content", "reasoning", "thinking",
    "tool_calls", "function_call", "name", "tool_call_id", "train_on_turn",
]  # fmt: skip


class Marks:
    """Values that are told apart wherever they turn up."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.count = 0

    def text(self) -> str:
        self.count += 1
        return f"mark{self.count}x"

    def value(self) -> Any:
        """A value that no one would take for another's."""
        return self.draw.choice([
            self.text(), [self.text()], {"a": self.text()}, self.draw.randrange(10**6, 10**7), 0.5, True, False, [], "",
            {}, [self.text(), None], None,
        ])  # fmt: skip


def message(marks: Marks, role: str, keys: tuple[str, str]) -> Row:
    extra = marks.draw.sample([*STRANGE, *KNOWN], marks.draw.choice([0, 0, 0, 1, 2]))
    return {keys[0]: role, keys[1]: marks.text()} | {name: marks.value() for name in extra}


def talk(
    marks: Marks, keys: tuple[str, str] = ("role", "content"), roles: tuple[str, str] = ("user", "assistant")
) -> Any:
    said = [message(marks, role, keys) for _ in range(marks.draw.randint(1, 2)) for role in roles]
    return json.dumps(said) if marks.draw.random() < 0.2 else said


def said(marks: Marks, role: str) -> Any:
    """A text, or a message or two of it."""
    if marks.draw.random() < 0.5:
        return marks.text()
    return [message(marks, role, ("role", "content"))]


def parts(marks: Marks) -> list[Row]:
    """A call and its result in Anthropic's parts, with extra fields."""

    def extra() -> Row:
        return {name: marks.value() for name in marks.draw.sample(["cache_control", "caller", "id", "x"], 1)}

    thought = [{"type": "thinking", "thinking": marks.text(), **extra()}] if marks.draw.random() < 0.5 else []
    call = {"type": "tool_use", **extra(), "id": "t1", "name": marks.text(), "input": {"a": marks.text()}}
    result = {"type": "tool_result", **extra(), "tool_use_id": "t1", "content": marks.text()}
    return [
        message(marks, "user", ("role", "content")),
        {"role": "assistant", "content": [*thought, {"type": "text", "text": marks.text(), **extra()}, call]},
        {"role": "user", "content": [result]},
        message(marks, "assistant", ("role", "content")),
    ]


FORMATS: dict[str, Callable[[Marks], Row]] = {
    "messages": lambda m: {"messages": parts(m) if m.draw.random() < 0.3 else talk(m)},
    "sharegpt": lambda m: {"conversations": talk(m, ("from", "value"), ("human", "gpt"))},
    "prompt_completion": lambda m: {"prompt": said(m, "user"), "completion": said(m, "assistant")},
    "columns": lambda m: {"q": {"text": said(m, "user"), "id": m.value(), **beside(m)}, "a": [m.text(), m.value()]},
    "alpaca": lambda m: {"instruction": m.text(), "input": m.text(), "output": m.text()},
    "preference": lambda m: {
        "prompt": said(m, "user"), "chosen": said(m, "assistant"), "rejected": said(m, "assistant")
    } if m.draw.random() < 0.7 else {
        "input": {"messages": [message(m, "user", ("role", "content"))], **beside(m)},
        "preferred_output": said(m, "assistant"), "non_preferred_output": said(m, "assistant"),
    },
    "text": lambda m: {"text": m.text()},
    "unpaired_preference": lambda m: {
        "prompt": said(m, "user"), "completion": said(m, "assistant"), "label": m.draw.choice([True, False, 1, 0, "no"])
    },
}  # fmt: skip
COLUMNS = {"prompt_column": "q.text", "completion_column": "a.0"}


def beside(marks: Marks) -> Row:
    """Fields beside a nested column."""
    return {name: marks.value() for name in marks.draw.sample([*STRANGE, *KNOWN], marks.draw.choice([0, 0, 1, 2]))}


def leaves(value: Any) -> list[str]:
    """Every mark in a value."""
    return [
        part for part in json.dumps(value, ensure_ascii=False).replace('\\"', '"').split('"') if part.startswith("mark")
    ]


def seen(record: Record) -> str:
    """All that training sees of a row."""
    return json.dumps([record.messages, record.text, record.tools, record.rejected], ensure_ascii=False)


def check(row: Row, read: Record | BadRow, listed: Callable[[str], bool]) -> None:
    """A row is refused with the name of what it can't honour; else each of its values is seen, or its name listed."""
    if isinstance(read, BadRow):
        assert re.search("|".join(map(re.escape, names_in(row))), str(read).partition("rows.jsonl:")[2]), read
        return
    text = seen(read)
    for name, value in row.items():
        if name != "label" or read.desirable is None:
            look(name, value, text, read, listed)


def names_in(value: Any) -> set[str]:
    """The names of the fields of a row, of its messages and of their parts."""
    if isinstance(value, str) and value[:1] == "[":
        value = json.loads(value)
    if isinstance(value, list):
        return {name for entry in value for name in names_in(entry)}
    return (
        set(value) | {name for entry in value.values() for name in names_in(entry)}
        if isinstance(value, dict)
        else set()
    )


def look(name: str, value: Any, text: str, read: Record, listed: Callable[[str], bool]) -> None:
    """Looks for a value among what is trained, part by part where it is a conversation or holds one."""
    if value is None or listed(name):
        return
    value = json.loads(value) if isinstance(value, str) and value[:1] == "[" else value
    of_messages = isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value)
    if of_messages:
        for entry in value:
            for key, inner in entry.items():
                look(f"{name}.{key}", inner, text, read, listed)
    elif isinstance(value, dict):
        for key, inner in value.items():
            look(f"{name}.{key}", inner, text, read, listed)
    elif isinstance(value, list) and name == "a":
        for i, inner in enumerate(value):
            look(f"{name}.{i}", inner, text, read, listed)
    else:
        assert_used(name, value, text, read)


USED_WITHOUT_A_TRACE = {
    "weight",
    "loss",
    "train",
    "trainable",
    "training",
    "train_on_turn",
    "loss_mask",
    "role",
    "from",
    "type",
    "id",  # of a call, by which its result finds the name
    "tool_use_id",
}


def assert_used(name: str, value: Any, text: str, record: Record) -> None:
    key = name.rpartition(".")[2]
    marks = leaves(value)
    if marks:
        assert all(mark in text for mark in marks), (name, value, record.unused)
    elif value not in ("", [], {}) and (isinstance(value, bool) or str(value) not in text):
        # A switch leaves its mark as a weight; every other field has to be listed
        assert key in USED_WITHOUT_A_TRACE, (name, value, record.unused)


@pytest.mark.parametrize("form", FORMATS)
def test_each_field_is_used_listed_or_refused(tmp_path: Path, form: str) -> None:
    rows, count = [], 1500
    marks = Marks(sorted(FORMATS).index(form))
    for _ in range(count):
        row = FORMATS[form](marks)
        for name in marks.draw.sample([*STRANGE, *KNOWN], marks.draw.choice([0, 1, 2, 3])):
            row.setdefault(name, marks.value())
        rows.append(row)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    data = DataConfig(format=form, train_file=str(file), on_bad_row="skip", **(COLUMNS if form == "columns" else {}))
    found = list(SourceRecords(file, data))
    assert len(found) == count
    used = 0
    for row, read in zip(rows, found, strict=True):
        unused = read.unused if isinstance(read, Record) else ()
        check(row, read, lambda name, unused=unused: name in unused)  # type: ignore[misc]
        used += isinstance(read, Record)
    assert used > count // 5
    # And the list of the file has each name with its number of rows
    part = reading.training(data)
    records = list(part)
    (remarks,) = part.remarks.values()
    names = {name for record in records for name in record.unused}
    assert remarks.unused == {name: sum(name in record.unused for record in records) for name in names}
