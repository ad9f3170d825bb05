"""Each data file is opened, recognised, parsed and hashed once, however often a run walks over its rows."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest
from file_opens import counted_opens
from pyarrow import parquet
from row_files import write
from transformers import AutoTokenizer

from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.formats import auto
from gemma_tune.data.json_decoder import Decoder
from gemma_tune.data.loading import find_rows, load_held_out, load_rows
from gemma_tune.data.reading import read_tests
from gemma_tune.data.record_cache import forget_cached_records, records_of
from gemma_tune.data.records import BadRow, Record
from gemma_tune.errors import UserError
from gemma_tune.run.manifest import file_digest
from gemma_tune.run.paths import ASSETS

ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n + 1}."} for n in range(500)]


def lines(rows: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=50)
    return buffer.getvalue()


def columns(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(["prompt,completion", *(",".join(row.values()) for row in rows)]).encode()


CONTENTS = {
    "rows.jsonl": lines(ROWS),
    "rows.jsonl.gz": gzip.compress(lines(ROWS)),
    "rows.json": json.dumps(ROWS).encode(),
    "lines.json": lines(ROWS),
    "rows.csv": columns(ROWS),
    "rows.csv.gz": gzip.compress(columns(ROWS)),
    "rows.parquet": table(ROWS),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_one_open_for_all_that_a_run_reads(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, tests = tmp_path / name, tmp_path / f"tests-{name}"
    file.write_bytes(CONTENTS[name])
    tests.write_bytes(CONTENTS[name])
    data = DataConfig(train_file=str(file), test_files={"t": str(tests)}, validation_split_percentage=10)
    recognised: Counter[str] = Counter()
    recognise = auto.recognise_format
    monkeypatch.setattr(
        "gemma_tune.data.record_cache.recognise_format",
        lambda *words: (recognised.update(["all"]), recognise(*words))[1],
    )
    with counted_opens() as opens:
        reading.check_first_rows(data)
        tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
        train, held_out = load_rows(data, tokenizer, 128, seed=0)
        again = load_held_out(data, tokenizer, 128, seed=0)
        wanted = train.rendered[5].input_ids
        assert len(find_rows(data, tokenizer, 128, [wanted])) == 1
        assert [len(records) for records in read_tests(data).values()] == [500]
        digests = {file_digest(path) for path in (file, tests)}
    assert (opens[str(file)], opens[str(tests)]) == (1, 1)
    assert recognised["all"] == 2  # the tests' bad rows are never skipped: they are read with a configuration of theirs
    assert digests == {hashlib.sha256(CONTENTS[name]).hexdigest()}
    assert held_out.read > 0 and train.read + held_out.read == 500
    assert list(again.rendered) == list(held_out.rendered)
    assert train.formats == {str(file): "prompt_completion"}


def test_what_was_read_is_handed_on(tmp_path: Path) -> None:
    """Walks that begin, end and cross each other see the same records, each parsed once."""
    path = Path(write(tmp_path / "rows.jsonl", *ROWS))
    data = DataConfig(train_file=str(path))
    straight = list(reading.training(data))
    forget_cached_records()
    with counted_opens() as opens:
        assert list(islice(reading.training(data), 7)) == straight[:7]
        one, other = iter(reading.training(data)), iter(reading.training(data))
        crossed = [(next(one), next(other), next(other)) for _ in range(10)]
        assert [row for row, _, _ in crossed] == straight[:10]
        assert [row for _, *rows in crossed for row in rows] == straight[:20]
        assert [*list(one)] == straight[10:] and [*list(other)] == straight[20:]
    assert opens[str(path)] == 1


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "rows.jsonl", *ROWS[:3]))
    data = DataConfig(train_file=str(path))
    assert len(list(reading.training(data))) == 3
    before = file_digest(path)
    write(path, *ROWS[:5])
    assert len(list(reading.training(data))) == 5
    assert before != file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    other = DataConfig(train_file=str(path), format="columns", prompt_column="completion", completion_column="prompt")
    assert next(iter(reading.training(other))).answer == ROWS[0]["prompt"]


def test_a_bad_row_is_told_at_every_walk(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *ROWS[:300], "{", *ROWS[300:])
    data = DataConfig(train_file=path)
    reading.check_first_rows(data)  # stands behind the first rows
    for _ in range(2):
        with pytest.raises(UserError, match=r"rows\.jsonl:301: this line is not JSON"):
            list(reading.training(data))
    part = reading.training(DataConfig(train_file=path, on_bad_row="skip"))
    assert len(list(part)) == len(list(part)) == 500 and len(part.skipped) == 1
    broken = tmp_path / "rows.json"
    broken.write_bytes(json.dumps(ROWS[:3]).encode()[:-1])
    for _ in range(2):
        with pytest.raises(UserError, match="the array's end is missing"):
            list(reading.training(DataConfig(train_file=str(broken))))


def test_an_interrupted_walk_is_no_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a row is parsed."""
    path = write(tmp_path / "rows.jsonl", *ROWS)
    data, parse = DataConfig(train_file=path), Decoder.line

    def stopped(decoder: Decoder, text: str) -> object:
        if "What is 40?" in text:
            raise KeyboardInterrupt
        return parse(decoder, text)

    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "line", stopped)
        with pytest.raises(KeyboardInterrupt):
            list(reading.training(data))
    assert len(list(reading.training(data))) == 500


def test_rows_that_can_not_be_kept(tmp_path: Path) -> None:
    """A reader of the user's own may put anything into a row."""
    path = write(tmp_path / "rows.jsonl", {})
    (tmp_path / "mine.py").write_text(
        "from gemma_tune.data.records import Record\n"
        "def read(path, data):\n"
        "    yield Record(f'{path}:1', text='one', row={'f': lambda: 1})\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match=r"rows\.jsonl:1: this row can't be stored on disk \(.*\); give plain values"):
        list(reading.training(DataConfig(train_file=path, format=f"{tmp_path}/mine.py:read")))


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_cached_records()
    path = write(tmp_path / "rows.jsonl", *ROWS)
    records = records_of(Path(path), DataConfig(train_file=path))
    records._out.close()  # type: ignore[union-attr]
    records._out = open("/dev/full", "wb", buffering=0)  # type: ignore[union-attr]  # noqa: SIM115
    with pytest.raises(UserError, match=r"parsed rows can't be written to .*HF_DATASETS_CACHE"):
        list(records)


def test_messages_of_bad_rows_survive() -> None:
    assert str(pickle.loads(pickle.dumps(BadRow("a.jsonl:1: wrong")))) == "a.jsonl:1: wrong"
    record = Record("a.jsonl:1", text="Hi", row={"text": "Hi"})
    assert pickle.loads(pickle.dumps(record)) == record and pickle.loads(pickle.dumps(record)).row == {"text": "Hi"}
