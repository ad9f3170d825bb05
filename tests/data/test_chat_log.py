"""Which rows of a chat log are one conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from row_files import read, refusal, write

from gemma_tune.config import DataConfig
from gemma_tune.data.reading import training
from gemma_tune.data.remarks import remark_lines


def log(*ids: Any) -> list[dict[str, Any]]:
    """A question and an answer for each two conversations named."""
    return [{"conversation": n, "sender": ("user", "assistant")[i % 2], "text": f"said {i}"} for i, n in enumerate(ids)]


def turns(file: str) -> list[int]:
    return [len(record.messages or ()) for record in read(file, format="chat_log")]


@pytest.mark.parametrize(
    "ids",
    [
        (1, 1.0),
        (1, "1"),
        ("1", 1.0),
        ("1.0", "1"),
        (" 1 ", 1),
        (-3.0, "-3"),
        (0.0, "0"),
        (10**15, "1000000000000000.0"),
    ],
)
def test_one_conversation(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    assert turns(write(tmp_path / "rows.jsonl", *log(*ids))) == [2]


@pytest.mark.parametrize(
    "ids", [("1.1", "1.10"), ("01", "1"), ("1.5", "1"), ("a1", "a1.0"), ("12e44", "12e45"), (2**60, 2**60 + 1), (1, -1)]
)
def test_two_conversations(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    a, b = ids
    assert turns(write(tmp_path / "rows.jsonl", *log(a, a, b, b))) == [2, 2]


def test_a_table_with_missing_cells(tmp_path: Path) -> None:
    """pandas writes every number of such a column with a decimal point."""
    file = tmp_path / "log.csv"
    file.write_text("conversation,sender,text\n7.0,user,a\n7,assistant,b\n,user,c\n", encoding="utf-8")
    assert "log.csv:4: the field 'conversation' is empty" in refusal(
        DataConfig(format="chat_log", train_file=str(file))
    )
    (record,) = read(file, format="chat_log", on_bad_row="skip")
    assert len(record.messages or ()) == 2


@pytest.mark.parametrize("name", [1.0521234567890125e18, "1.0521234567890125e+18", "1e+18", "9007199254740992.0"])
def test_numbers_that_lost_their_digits(tmp_path: Path, name: Any) -> None:
    message = refusal(DataConfig(format="chat_log", train_file=write(tmp_path / "rows.jsonl", *log(name, name))))
    assert "rows.jsonl:1: the conversation" in message and "dtype str or Int64" in message


def test_fields_are_listed_and_ignored(tmp_path: Path) -> None:
    rows = [{"conversation": 1, "sender": "assistant", "text": "Welcome."}, *log(1, 1)]
    file = write(tmp_path / "rows.jsonl", *[{**row, "lang": "en"} for row in rows])
    (record,) = read(file, format="chat_log")
    assert set(record.unused) == {"lang", "messages before the user's first"} and len(record.row["messages"]) == 3
    (record,) = read(file, format="chat_log", ignore_fields=list(record.unused))
    assert not record.unused and set(record.ignored) == {"lang", "messages before the user's first"}


def test_missing_columns_are_named_together(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"ticket": 1, "Sender": "user", "body": "Why?"})
    said = refusal(DataConfig(format="chat_log", train_file=file))
    assert "no field 'conversation' and no field 'sender' and no field 'text'; found: ticket, Sender, body." in said
    assert "found: ticket, Sender, body. Did you mean data.sender_column=Sender? Set data." in said
    assert "Set data.conversation_column, data.sender_column, data.message_column." in said


def test_a_column_in_another_letter_case_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"Question": "Why?", "Answer": "So."})
    data = DataConfig(format="columns", prompt_column="question", completion_column="answer", train_file=file)
    assert "Did you mean Question?" in refusal(data)


def warnings(file: str, **keys: Any) -> list[str]:
    reader = training(DataConfig(format="chat_log", train_file=file, **keys))
    assert list(reader)
    return [line for line in remark_lines(reader.remarks, "training rows") if line.startswith("warning: ")]


def test_conversations_of_many_are_doubted(tmp_path: Path) -> None:
    """Each customer's messages would be answers to another's."""
    rows = [
        {"channel": channel, "conversation": f"{channel}{n}", "sender": who, "text": f"said {n}"}
        for channel in ("email", "phone")
        for n in range(4)
        for who in (f"customer {n}", "agent")
    ]
    file, keys = write(tmp_path / "log.jsonl", *rows), {"assistant_senders": ["agent"]}
    assert warnings(file, **keys) == []
    (said,) = warnings(file, **keys, conversation_column="channel")
    assert "data.conversation_column=channel: 2 of 2 conversations" in said and "customer 0, customer 1" in said
    same = write(tmp_path / "same.jsonl", *({**row, "channel": "email", "sender": row["sender"][:5]} for row in rows))
    (said,) = warnings(same, **keys, conversation_column="channel")
    assert "data.conversation_column=channel has one value in all 16 rows" in said
