"""Layouts, compressions and encodings of files: the rows are the same; and nothing of a file is left out."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from row_files import refusal

from gemma_tune.config import DataConfig
from gemma_tune.data.files import read_file
from gemma_tune.data.reading import training
from gemma_tune.validation.paths import encoding_problems

ROWS = [{"prompt": f"Frage {n}: „Größe“?", "completion": f"Antwort {n}"} for n in range(4)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
PANDAS = {name: {str(n): value for n, value in enumerate(column)} for name, column in COLUMNS.items()}


def zst(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return bytes(out.getvalue())


def answers(path: Path, **options: Any) -> list[str]:
    return [record.answer for record in training(DataConfig(train_file=str(path), **options))]


def lines(rows: list[Any], indent: int | None = None) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False, indent=indent) for row in rows)


LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "pretty.json": (lines(ROWS, 2), {}),
    "pretty.jsonl": (lines(ROWS, 2), {}),
    "two on a line.json": ("".join(json.dumps(r, indent=1) for r in ROWS), {}),
    "lists.json": (lines([COLUMNS]), {}),
    "lists.jsonl": (lines([COLUMNS], 1), {}),
    "pandas.json": (lines([PANDAS]), {}),
    "index.json": (lines([{str(n): row for n, row in enumerate(ROWS)}]), {}),
    "split.json": (
        lines([{"columns": list(ROWS[0]), "index": [0, 1, 2, 3], "data": [[*r.values()] for r in ROWS]}]), {},
    ),
    "table.json": (lines([{"schema": {"fields": [{"name": "prompt"}]}, "data": ROWS}]), {}),
    "found.json": (lines([{"version": 1, "items": ROWS}], 2), {}),
    "named.json": (lines([{"a": ROWS, "b": ROWS[:1]}]), {"field": "a"}),
    "below.jsonl": (lines([{"r": {"items": ROWS}, "old": ROWS[:1]}], 2), {"field": "r.items"}),
    "a dot.json": (lines([{"r.items": ROWS, "r": {"items": ROWS[:1]}}]), {"field": "r.items"}),
    "columns below.json": (lines([{"r": COLUMNS}]), {"field": "r"}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layouts_of_json(tmp_path: Path, name: str) -> None:
    text, options = LAYOUTS[name]
    for encoding in ("utf-8", "utf-16", "cp1252"):
        (tmp_path / name).write_text(text, encoding=encoding)
        assert answers(tmp_path / name, encoding=encoding, **options) == COLUMNS["completion"]


def test_the_place_of_a_row_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("\n" + lines(ROWS[:2], 2) + json.dumps(ROWS[2]), encoding="utf-8")
    found = [row.where for row in training(DataConfig(train_file=str(path)))]
    assert found == [f"{path}:{n}" for n in (2, 6, 9)]


@pytest.mark.parametrize("row", [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "tools": []},
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
    {"talk": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"mine": "Hi", "yours": "Hello", "sources": [{"a": "b"}]},
])  # fmt: skip
def test_one_row_is_a_row(tmp_path: Path, row: dict[str, Any]) -> None:
    """Though it holds a list of objects."""
    (tmp_path / "rows.json").write_text(json.dumps(row))
    columns = {"prompt_column": "mine", "completion_column": "yours"} if "mine" in row else {}
    columns |= {"messages_column": "talk"} if "talk" in row else {}
    assert answers(tmp_path / "rows.json", **columns) == ["Hello"]
    assert list(read_file(tmp_path / "rows.json")) == [(f"{tmp_path}/rows.json:1", row)]


def test_a_field_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(lines([{"a": ROWS, "b": 5}]))
    assert "there is no field 'c'; found: a, b" in refusal(DataConfig(train_file=str(path), field="c"))
    assert "data.field=b holds int, not a list of rows" in refusal(DataConfig(train_file=str(path), field="b"))
    path.write_text(lines(ROWS))
    assert "this file is not one JSON object" in refusal(DataConfig(train_file=str(path), field="a"))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_every_member_of_a_compressed_file_is_read(tmp_path: Path, suffix: str) -> None:
    compress = {".gz": gzip.compress, ".zst": zst, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    half = [(lines(rows) + "\n").encode() for rows in (ROWS[:2], ROWS[2:])]
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(b"".join(map(compress, half)))
    assert answers(path) == COLUMNS["completion"]
    path.write_bytes(b"".join(map(compress, half))[:-5])
    assert "this is no whole" in refusal(DataConfig(train_file=str(path)))
    (tmp_path / "rows.json").write_bytes(compress(json.dumps(ROWS).encode()))  # named without its suffix
    assert answers(tmp_path / "rows.json") == COLUMNS["completion"]
    big = [{"prompt": f"{n}", "completion": f"{n * 7919 % 100_003}" * 30} for n in range(4000)]
    path.write_bytes(compress(lines(big).encode()))
    assert answers(path) == [row["completion"] for row in big]


def test_encodings(tmp_path: Path) -> None:
    csv = "prompt,completion\n" + "\n".join(",".join(row.values()) for row in ROWS)
    for encoding in ("cp1252", "utf-16", "utf-16-le", "utf-8-sig"):
        for name, text in (("rows.csv", csv), ("rows.jsonl", lines(ROWS))):
            (tmp_path / name).write_text(text, encoding=encoding)
            assert answers(tmp_path / name, encoding=encoding) == COLUMNS["completion"], (encoding, name)
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS).encode("cp1252").replace(b"2: ", b"\x81: "))
    wrong = refusal(DataConfig(train_file=f"{tmp_path}/rows.jsonl", encoding="cp1252"))
    assert wrong.startswith(f"{tmp_path}/rows.jsonl:3: the bytes are not cp1252; check data.encoding")
    assert len(answers(tmp_path / "rows.jsonl", encoding="cp1252", on_bad_row="skip")) == 3
    assert "name its encoding: data.encoding=cp1252" in refusal(DataConfig(train_file=f"{tmp_path}/rows.jsonl"))


def test_arrow_streams_and_files(tmp_path: Path) -> None:
    table, path = Dataset.from_list(ROWS).data.table, tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    assert answers(path) == COLUMNS["completion"]
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    whole = path.read_bytes()
    assert answers(path) == COLUMNS["completion"]
    (tmp_path / "rows.arrow.zst").write_bytes(zst(whole))
    assert answers(tmp_path / "rows.arrow.zst") == COLUMNS["completion"]
    for content, says in ((whole[:-8], "the stream has no end"), (whole * 2, "something follows the Arrow stream"),
                          (whole[:-90], "from here on this is not Arrow")):  # fmt: skip
        path.write_bytes(content)
        assert says in refusal(DataConfig(train_file=str(path)))


def test_running_text(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"\xef\xbb\xbf\r\nOne,\r\n  two.\r\n\r\n\r\nThree.\r\n")

    def texts(**options: Any) -> list[tuple[str, str | None]]:
        records = training(DataConfig(train_file=str(path), **options))
        return [(record.where.removeprefix(f"{path}:"), record.text) for record in records]

    assert texts() == texts(sample_by="paragraph") == [("2", "One,\n  two."), ("6", "Three.")]
    assert texts(sample_by="line") == [("2", "One,"), ("3", "  two."), ("6", "Three.")]
    assert texts(sample_by="document", format="text", text_column="body") == [("2", "One,\n  two.\n\n\nThree.")]
    path.write_text("One line.\n")
    assert texts() == [("1", "One line.")]


def test_a_name_of_no_encoding() -> None:
    assert not list(encoding_problems("cp1252"))
    for name, says in (("cp1525", "Did you mean"), ("base64", "no encoding of text"), ("a\0", "no encoding of text")):
        (problem,) = encoding_problems(name)
        assert says in problem
