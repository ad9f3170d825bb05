"""Files that can't be read as what they claim to be: file, line, and what to do; and rows that are left out."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from row_files import read_records, refusal, turn, write
from transformers import AutoTokenizer

from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.run.paths import ASSETS, absolute

GOOD = {"messages": turn("Hi", "Hello")}
LINE = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    ("name", "content", "at", "says"),
    [
        ("a.json", b"[" + LINE + b",\n" + LINE[:-1] + b"]", ":2", "from here on the array is not JSON"),
        ("b.json", b"[" + LINE + b"\n" + LINE + b"]", ":2", "a comma or the array's end is missing here"),
        ("c.json", b"[\n" + LINE + b",\n5]", ":3", "this line is int, not a JSON object"),
        ("d.json", b"[" + LINE + b",]", ":1", "from here on the array is not JSON"),
        ("e.json", b"[" + LINE, ":1", "a comma or the array's end is missing here"),
        ("f.json", b"[\n" + LINE + b',\n{"text": "\xe9"}]', ":3", "the bytes are not UTF-8 (byte 10 of the line)"),
        ("g.jsonl", b"[" + LINE + b",\n" + LINE + b"]", ":1", "Name a file that is one JSON array .json."),
        ("h.csv", b"prompt,completion\n\"one\ntwo\",1\nthree,four,2\n", ":4", "3 fields, and the first line names 2"),
        ("i.csv", b"text\none\n\"two\n", ":3", "from here on this is not CSV"),
        ("j.csv", b"text\none\n\xe9t\xe9\n", ":3", "the bytes are not UTF-8; save the file as UTF-8"),
        ("k.parquet", b"PAR1 or not", ":row 1", "this is not Parquet"),
        ("l.jsonl.gz", LINE, "", "this is no whole gzip file"),
        ("m.jsonl.gz", gzip.compress((LINE + b"\n") * 9, mtime=0)[:-12], "", "this is no whole gzip file"),
        ("n.jsonl", "\ufeff".encode("utf-16-le") + "x".encode("utf-16-le"), ":1", "this file is UTF-16"),
        ("o.jsonl", LINE + b'\n{"question": "a", "answer": "b"}', ":2", "there is no field 'messages'"),
        ("p.jsonl", b'{"question": "a", "answer": "b"}', ":1", "data.prompt_column=question data.completion_c"),
        ("q.jsonl", b'{"conversations": [{"from": "robot", "value": "Hi"}]}', ":1", "message 1 has the role 'robot'"),
        ("r.jsonl", b'{"instruction": "Hi", "output": ""}', ":1", "the field 'output' is empty"),
        ("s.jsonl", b'{"prompt": "Hi", "completion": {}}', ":1", "'completion' is neither a text nor a list of"),
        ("u.json", b"[" + LINE + b"]\n[" + LINE + b"]", ":2", "something follows the array"),
        ("v.csv", b"text,text\n1,2\n", ":1", "names text twice"),
        ("w.csv", "text\none".encode("utf-16"), ":1", "this file is UTF-16"),
        ("x.csv", b"t\xe9xt\none\n", ":1", "the bytes are not UTF-8"),
        ("y.jsonl", b'{"messages": [{"role": "user", "words": "Hi"}]}', ":1", "of the role 'user' has no content"),
        ("z.jsonl", b'{"conversations": [{"from": "human", "words": "Hi"}]}', ":1", "has no content"),
        ("cell.jsonl", rb'{"text": "\ud83d"}', ":1", "\\ud83d stands without the other half"),
        ("deep.jsonl", b'{"text": ' + b"[" * 100_000, ":1", "this line is not JSON"),
        ("words.json", b'{"data": 5}', ":1", "the fields data are those of no known format"),
        ("pretty.json", b'{\n "text": "one"\n', ":1", "As an object over several lines it ends at line 3"),
        ("pretty2.jsonl", b'{\n"text": "one"\n}\n{\n"text" "two"}', ":4", "from here on this is not JSON"),
        ("uneven.json", b'{"prompt": ["a"], "completion": ["b", "c"]}', ":1", "(prompt: 1, completion: 2); write one"),
        ("several.json", b'{"a": [{"text": "1"}], "b": [{"text": "2"}]}', ":1", "say which to read: data.field=a"),
        ("inner.json", b'{"r": {"items": [{"text": "1"}]}}', ":1", "say which to read: data.field=r.items"),
        ("u.jsonl.zst", LINE, "", "this is no whole Zstandard file (it doesn't begin as one)"),
        ("u.jsonl.xz", lzma.compress(LINE)[:-9], "", "this is no whole xz file"),
        ("u2.jsonl.xz", lzma.compress(LINE) + b"more of it", "", "this is no whole xz file"),
        ("u.jsonl.bz2", bz2.compress(LINE)[:-9], "", "this is no whole bzip2 file"),
        ("two.txt", b"one\ntwo\n", "", "2 lines, and no blank one that would end a text; say what a row is"),
        ("t.jsonl", b'{"conversations": [{"from": "human", "value": "Hi"}]}', ":1", "no assistant message to learn"),
    ],
)  # fmt: skip
def test_the_message(tmp_path: Path, name: str, content: bytes, at: str, says: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    message = refusal(DataConfig(train_file=str(file)))
    assert message.startswith(f"{file}{at}: ") and says in message, message


def table(path: Path, columns: dict[str, pa.Array]) -> str:
    parquet.write_table(pa.table(columns), path)
    return str(path)


def test_parquet_that_python_can_not_read(tmp_path: Path) -> None:
    file = table(tmp_path / "a.parquet", {"text": pa.array([b"\xff"]).cast(pa.string(), safe=False)})
    assert refusal(DataConfig(train_file=file)).startswith(f"{file}:row 1: from here on this is not Parquet")
    call = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [
        {"function": {"name": "f", "arguments": {"at": datetime.datetime(2026, 1, 1)}}}]}]  # fmt: skip
    file = table(tmp_path / "b.parquet", {"messages": pa.array([call])})
    assert refusal(DataConfig(train_file=file)).startswith(f"{file}:row 1: a value is not valid in JSON")


def test_no_file_is_passed_over(tmp_path: Path) -> None:
    """One that can't be recognised stands beside a good one."""
    write(tmp_path / "a.jsonl", *[GOOD] * 3)
    for name, content, at in (
        ("b.jsonl", b"{\n" * 100 + LINE, ":1: this line is not JSON"),
        ("c.jsonl", b"", " holds no rows"),
        (
            "d.csv",
            b'question;"the, answer"\n1;2\n',
            ":2: the fields question, the, answer are those of no known format",
        ),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        assert f"{file}{at}" in refusal(DataConfig(train_file=str(tmp_path)))
        file.unlink()


def test_an_empty_set_does_not_end_the_mix(tmp_path: Path) -> None:
    empty, full = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl", *[GOOD] * 9)
    for strategy in ("first_exhausted", "all_exhausted"):
        data = DataConfig(train_files={"a": empty, "b": full}, weights={"b": 9}, stopping_strategy=strategy)
        assert refusal(data) == f"data.train_files.a={empty}: the file holds no rows."
    bad = write(tmp_path / "a.jsonl", "{")
    data = DataConfig(train_files={"a": bad, "b": full}, on_bad_row="skip")
    assert refusal(data).startswith(f"data.train_files.a={bad}: all rows are bad (1). ")


def test_the_first_row_that_fits_decides_where_bad_ones_are_skipped(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"id": 1}, "{", *[GOOD] * 2)
    train, _ = read_records(DataConfig(train_file=file, on_bad_row="skip"), seed=0)
    assert [r.where for r in train] == [f"{file}:3", f"{file}:4"]
    file = table(tmp_path / "a.parquet", {"text": pa.array(["a", "b"]), "messages": pa.array([None, GOOD["messages"]])})
    train, _ = read_records(DataConfig(train_file=file, on_bad_row="skip"), seed=0)
    assert [r.messages for r in train] == [GOOD["messages"]]


def test_csv_as_people_write_it(tmp_path: Path) -> None:
    for content in (b'\r\n"instruction";"output";"more, or\r\nless"\r\n"Hi";"Hello, you";""\r\n\r\n',
                    b"\n\ninstruction\toutput\nHi\tHello, you\n"):  # fmt: skip
        file = tmp_path / "rows.csv"
        file.write_bytes(content)
        train, _ = read_records(DataConfig(train_file=str(file)), seed=0)
        assert [r.messages for r in train] == [turn("Hi", "Hello, you")]


def test_an_empty_history_in_a_table(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('instruction,output,history\nHi,Hello,\nBye,See you,"[[""Hi"", ""Hello""]]"\n', encoding="utf-8")
    train, _ = read_records(DataConfig(train_file=str(file)), seed=0)
    assert [len(r.messages or ()) for r in train] == [2, 4]


def test_bad_test_rows_are_never_skipped(tmp_path: Path) -> None:
    good, test = write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", GOOD, "{")
    assert f"{test}:2: this line is not JSON" in refusal(
        DataConfig(train_file=good, test_files={"mine": test}, on_bad_row="skip")
    )


def test_named_columns_come_first(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"prompt": "1", "completion": "2", "question": "3", "answer": "4"})
    data = DataConfig(train_file=file, prompt_column="question", completion_column="answer")
    assert read_records(data, seed=0)[0][0].messages == turn("3", "4")


def test_a_glob_below_a_folder_with_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data [v1]"
    folder.mkdir()
    write(folder / "a.jsonl", GOOD)
    monkeypatch.chdir(folder)
    assert len(read_records(DataConfig(train_file=absolute("*.jsonl")), seed=0)[0]) == 1


def spoilt(kind: str) -> tuple[bytes, list[int]]:
    """A file of nine rows with bad ones among them, and the lines (rows of Parquet) that are bad."""
    lines = [LINE] * 9
    lines[2], lines[5], lines[8] = b"{", b'{"messages": []}', b'{"messages": [{"role": "user", "content": "\xff"}]}'
    return b"\n".join(lines), [3, 6, 9]


def test_bad_rows_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    content, bad = spoilt("jsonl")
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    rows, _ = load_rows(DataConfig(train_file=str(file), on_bad_row="skip"), tokenizer, 64, seed=0)
    assert [r.where for r in rows.records] == [f"{file}:{n}" for n in range(1, 10) if n not in bad]
    assert [text.split(": ")[0] for text in rows.skipped] == [f"{file}:{n}" for n in bad]
    assert (rows.counts()["rows_read"], rows.counts()["rows_skipped"]) == (6, 3)
    assert any("3 bad rows were skipped" in note for note in rows.notes("training rows"))


@pytest.mark.parametrize("write_rows", [lambda p: write(p, "{", "5")])
def test_only_bad_rows(tmp_path: Path, write_rows: Callable[[Path], str]) -> None:
    file = write_rows(tmp_path / "rows.jsonl")
    message = refusal(DataConfig(format="messages", train_file=file, on_bad_row="skip"))
    assert message.startswith(
        f"data.train_file={file}: all rows are bad (2). The first: {file}:1: this line is not JSON"
    )


def test_rows_of_two_parts_and_rows_said_twice(tmp_path: Path) -> None:
    rows: list[Any] = [{"messages": turn(f"Question {i}", "Answer")} for i in range(6)]
    again = {"messages": [{"content": " Question 1 ", "role": "user"}, {"role": "assistant", "content": "Answer"}]}
    train = write(tmp_path / "train.jsonl", *rows, again)
    held_out, test = write(tmp_path / "held_out.jsonl", rows[3]), write(tmp_path / "test.jsonl", rows[5])
    data = DataConfig(train_file=train, validation_file=held_out, test_files={"mine": test})
    found, others = load_rows(data, AutoTokenizer.from_pretrained(ASSETS / "tiny"), 64, seed=0)
    assert found.repeated == [f"{train}:7"]
    assert found.leaked == [f"{train}:4", f"{train}:6"]
    assert (len(found.rendered), len(others.rendered)) == (7, 1)
    notes = "\n".join(found.notes("training rows"))
    assert "1 row is equal to an earlier one" in notes and "2 rows are also in the held-out or test set" in notes


def test_equal_rows_are_held_out_together(tmp_path: Path) -> None:
    rows = [{"messages": turn(f"Question {i % 20}", "Answer")} for i in range(200)]
    data = DataConfig(train_file=write(tmp_path / "rows.jsonl", *rows), validation_split_percentage=10)
    for seed in range(5):
        train, held_out = ({r.messages[0]["content"] for r in part if r.messages} for part in read_records(data, seed))
        assert held_out and not train & held_out


def test_a_row_stays_on_its_side_wherever_it_stands(tmp_path: Path) -> None:
    rows = [{"messages": turn(f"Question {i}", "Answer")} for i in range(100)]
    sides = []
    for order in (rows, rows[::-1]):
        data = DataConfig(train_file=write(tmp_path / "rows.jsonl", *order), validation_split_percentage=10)
        sides.append({r.messages[0]["content"] for r in read_records(data, 0)[1] if r.messages})
    assert sides[0] == sides[1] and len(sides[0]) == 10


def test_how_many_rows_are_bad(tmp_path: Path) -> None:
    """With the way to leave them out, where there is one and some are good."""
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\n" + "Why?,So.\n,So.\n" * 3, encoding="utf-8")
    data = DataConfig(format="columns", prompt_column="question", completion_column="answer", train_file=str(file))
    said = refusal(data)
    assert "rows.csv:3: the field 'question' is empty" in said and "3 rows are bad" in said
    assert "data.on_bad_row=skip" in said
    file.write_text("question,answer\n,So.\n,So.\n", encoding="utf-8")
    assert "data.on_bad_row" not in refusal(data)
