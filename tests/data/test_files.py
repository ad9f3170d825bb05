"""Every format in every type of file: the same ids and masks as of a conversation written by hand."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from row_files import refusal, write
from transformers import AutoTokenizer

from gemma_tune.chat import render_chat, render_text
from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.data.split import split_rows
from gemma_tune.run.paths import ASSETS

ASKED = ["What is 2, and 3?", 'Sag "Größe"\nin zwei Zeilen', "привет — как дела?", "你好，世界 🙂", "שלום"]
ANSWERED = ["It is 5.", "Größe;\nnoch eine Zeile", "хорошо, спасибо", "你好！", "שלום לך"]

Row = dict[str, Any]
ROWS: dict[str, Callable[[str, str], Row]] = {
    "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "prompt_completion": lambda q, a: {"prompt": q, "completion": a},
    "columns": lambda q, a: {"id": "7", "question": q, "answer": a},
    "text": lambda q, a: {"text": f"{q} {a}"},
}


def as_jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def as_json(rows: list[Row]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=2).encode()


def as_csv(rows: list[Row], delimiter: str = ",") -> bytes:
    """As spreadsheets and pandas write it; lists as JSON in their cell."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in row.items()})
    return out.getvalue().encode()


def as_parquet(rows: list[Row]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


TYPES: dict[str, Callable[[list[Row]], bytes]] = {
    "jsonl": as_jsonl,
    "ndjson.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "json": as_json,
    "json.gz": lambda rows: gzip.compress(as_json(rows)),
    "lines.json": as_jsonl,
    "csv": as_csv,
    "csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "tsv": lambda rows: as_csv(rows, "\t"),
    "parquet": as_parquet,
    "PARQUET": as_parquet,
    "parquet.gz": lambda rows: gzip.compress(as_parquet(rows)),
    "with a BOM.jsonl": lambda rows: b"\xef\xbb\xbf" + as_jsonl(rows),
    "with a BOM.json": lambda rows: b"\xef\xbb\xbf" + as_json(rows),
    "with a BOM.csv": lambda rows: b"\xef\xbb\xbf" + as_csv(rows),
    "CRLF.jsonl": lambda rows: as_jsonl(rows).replace(b"\n", b"\r\n"),
    "CRLF.json": lambda rows: as_json(rows).replace(b"\n", b"\r\n"),
    "semicolons.csv": lambda rows: as_csv(rows, ";"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "tiny")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("form", ROWS)
def test_ids_and_masks_are_those_of_a_conversation_by_hand(
    tmp_path: Path, tokenizer: Any, form: str, kind: str
) -> None:
    pairs = list(zip(ASKED, ANSWERED, strict=True))
    file = tmp_path / f"rows.{kind}"
    file.write_bytes(TYPES[kind]([ROWS[form](q, a) for q, a in pairs]))
    if form == "text":
        by_hand = [render_text(tokenizer, f"{q} {a}") for q, a in pairs]
    else:
        by_hand = [
            render_chat(tokenizer, [{"role": "user", "content": q}, {"role": "assistant", "content": a}])
            for q, a in pairs
        ]
    columns = {"prompt_column": "question", "completion_column": "answer"} if form == "columns" else {}
    for named in (form, "auto"):
        rows, _ = load_rows(DataConfig(format=named, train_file=str(file), **columns), tokenizer, 512, seed=0)
        assert rows.rendered == by_hand
    assert rows.formats == {str(file): form}


def test_fields_beside_those_of_the_format(tmp_path: Path, tokenizer: Any) -> None:
    """System texts, inputs, earlier turns, tools and calls, in each format that has them."""
    tool = {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {"type": "object"}}}
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}

    def turns(*said: tuple[str, str]) -> list[Row]:
        return [{"role": role, "content": text} for role, text in said]

    long = turns(("system", "Be kind"), ("user", "Hi"), ("assistant", "Hello"), ("user", "Add\n\n1 2"))
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    answered = [*long, {"role": "assistant", "content": "3"}]
    worked_out = [*long[1:], called, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "It is 3."}]
    shared = [("human", "Hi"), ("gpt", "Hello"), ("human", "Add\n\n1 2")]
    files: dict[str, Row] = {
        "alpaca": {"instruction": "Add", "input": "1 2", "output": "3", "history": [["Hi", "Hello"]]},
        "sharegpt": {"conversations": [{"from": f, "value": v} for f, v in [*shared, ("gpt", "3")]]},
    }
    for form, row in files.items():
        row["system"] = "Be kind"
        rows, _ = load_rows(DataConfig(train_file=write(tmp_path / f"{form}.jsonl", row)), tokenizer, 512, seed=0)
        assert rows.formats == {str(tmp_path / f"{form}.jsonl"): form}
        assert rows.rendered == [render_chat(tokenizer, answered)], form
    said = [*shared, ("function_call", json.dumps(call)), ("observation", "3"), ("gpt", "It is 3.")]
    for tools in ([tool], json.dumps([tool]), [tool["function"]]):
        row = {"conversations": [{"from": f, "value": v} for f, v in said], "tools": tools}
        rows, _ = load_rows(DataConfig(train_file=write(tmp_path / "calls.jsonl", row)), tokenizer, 512, seed=0)
        assert rows.rendered == [render_chat(tokenizer, worked_out, [tool])]


def test_only_the_completion_is_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    completion = [{"role": "assistant", "content": "See you"}]
    file = write(tmp_path / "rows.jsonl", {"prompt": prompt, "completion": completion})
    rows, _ = load_rows(DataConfig(train_file=file), tokenizer, 512, seed=0)
    (row,) = rows.rendered
    both = render_chat(tokenizer, prompt + completion)
    assert row.input_ids == both.input_ids
    answer = tokenizer("See you<end_of_turn>", add_special_tokens=False)["input_ids"]
    assert [i for i in row.labels if i != -100] == answer
    assert both.trained_tokens > row.trained_tokens


def test_a_text_that_looks_like_a_list_stays_a_text(tmp_path: Path, tokenizer: Any) -> None:
    for said in ("[1, 2", '[{"a": 1}]', "[]"):
        file = write(tmp_path / "rows.jsonl", {"prompt": said, "completion": said})
        rows, _ = load_rows(DataConfig(train_file=file), tokenizer, 512, seed=0)
        by_hand = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
        assert rows.rendered == [render_chat(tokenizer, by_hand)]


def test_folders_and_globs(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "more").mkdir()
    for name in ("b.csv", "a.jsonl", "more/c.parquet", "more/d.jsonl.gz"):
        kind = name.partition(".")[2].replace("jsonl.gz", "ndjson.gz")
        (tmp_path / name).write_bytes(TYPES[kind]([ROWS["alpaca"]("From", name)]))
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / ".hidden.jsonl").write_text("no data")

    def answers(name: str) -> list[str]:
        rows, _ = load_rows(DataConfig(train_file=name), tokenizer, 512, seed=0)
        return [r.messages[-1]["content"] for r in rows.records if r.messages]

    assert answers(str(tmp_path)) == ["a.jsonl", "b.csv", "more/c.parquet", "more/d.jsonl.gz"]
    assert answers(f"{tmp_path}/*.csv") == ["b.csv"]
    assert answers(f"{tmp_path}/**/*.parquet") == ["more/c.parquet"]
    assert refusal(DataConfig(train_file=f"{tmp_path}/*.txt")) == (
        f"data.train_file={tmp_path}/*.txt: no file has a name like this."
    )
    (tmp_path / "empty").mkdir()
    assert "no file of this folder is one of .jsonl" in refusal(DataConfig(train_file=str(tmp_path / "empty")))
    assert "README.md is of no known type" in refusal(DataConfig(train_file=str(tmp_path / "README.md")))


def test_rows_of_an_array_on_one_line_are_rows_of_their_own(tmp_path: Path) -> None:
    """Held out, found twice and named one by one, as rows of a file with a line for each are."""
    file = tmp_path / "rows.json"
    texts = [{"text": f"Row {n % 90}"} for n in range(100)]
    file.write_text(json.dumps(texts), encoding="utf-8")
    split = split_rows(DataConfig(train_file=str(file), validation_split_percentage=20), seed=0)
    train, held_out = list(split.train()), list(split.held_out())
    assert len(train) + len(held_out) == 100 and len(held_out) >= 20
    assert len({r.where for r in [*train, *held_out]}) == 100
    assert len(split.repeated_at) + len(held_out) - len({r.text for r in held_out}) == 10
