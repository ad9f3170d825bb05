"""Data sets named as on the Hub, and rows that are read while training goes on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from row_files import read_records, refusal, turn, write
from transformers import AutoTokenizer

from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_held_out, load_rows
from gemma_tune.data.stream import stream_rows
from gemma_tune.errors import UserError
from gemma_tune.run.paths import ASSETS


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "tiny")


def conversations(n: int) -> list[dict[str, Any]]:
    return [{"messages": turn(f"Question {i}", f"Answer {i}")} for i in range(n)]


def test_splits_of_a_data_set(tmp_path: Path) -> None:
    """A folder that `datasets` reads as it reads one of the Hub."""
    write(tmp_path / "train.jsonl", *conversations(6))
    write(tmp_path / "test.jsonl", *conversations(9)[6:])
    data = DataConfig(dataset_name=str(tmp_path), validation_split="test")
    train, held_out = read_records(data, seed=0)
    assert [r.messages for r in train] == [row["messages"] for row in conversations(6)]
    assert [r.messages for r in held_out] == [row["messages"] for row in conversations(9)[6:]]
    assert [r.where for r in train] == [f"{tmp_path}:train:row {n}" for n in range(1, 7)]
    part, _ = read_records(DataConfig(dataset_name=str(tmp_path), split="train[:50%]"), seed=0)
    assert len(part) == 3
    streamed, _ = read_records(DataConfig(dataset_name=str(tmp_path), streaming=True), seed=0)
    assert [r.messages for r in streamed] == [r.messages for r in train]


def test_a_data_set_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *conversations(2))
    message = refusal(DataConfig(dataset_name=str(tmp_path), split="dev"))
    assert message.startswith(f"data.dataset_name={tmp_path}:dev: it can't be loaded (") and "data.split" in message
    message = refusal(DataConfig(dataset_name="nobody/nothing"))
    assert message.startswith("no network: data.dataset_name=nobody/nothing:train: it isn't")  # HF_HUB_OFFLINE
    assert "data.train_file=my.jsonl" in message


def test_a_stream_gives_the_same_rows(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "rows.jsonl", *conversations(300))
    whole, _ = load_rows(DataConfig(train_file=file), tokenizer, 64, seed=0)
    by_hand = [(r.input_ids, r.labels) for r in whole.rendered]
    train, held_out = stream_rows(DataConfig(train_file=file, streaming=True, shuffle_buffer_size=1), tokenizer, 64, 0)
    next(iter(train.dataset))  # as TRL looks at it; this counts nothing
    streamed = [(r["input_ids"], r["labels"]) for r in itertools.islice(train.dataset, 300)]
    assert streamed == by_hand and held_out.read == 0
    unlike = ("rows_read", "rows", "tokens", "trained_tokens", "rows_repeated", "rows_leaked")
    assert {**train.counts(), **dict.fromkeys(unlike)} == {**whole.counts(), **dict.fromkeys(unlike)}
    assert "rows_repeated" not in train.counts()  # not looked for
    assert 300 <= train.read <= 302
    assert [r.where for r in train.records] == [r.where for r in whole.records[:200]]
    again = [(r["input_ids"], r["labels"]) for r in itertools.islice(train.dataset, 600)]
    assert again == by_hand * 2  # no end


def test_a_stream_is_shuffled(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "rows.jsonl", *conversations(300))
    orders = []
    for seed in (0, 0, 1):
        data = DataConfig(train_file=file, streaming=True, shuffle_buffer_size=50)
        train, _ = stream_rows(data, tokenizer, 64, seed)
        orders.append([tuple(row["input_ids"]) for row in itertools.islice(train.dataset, 100)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != [tuple(r.input_ids) for r in train.rendered[:100]]


def test_the_share_hangs_on_the_row_alone(tmp_path: Path, tokenizer: Any) -> None:
    sides = []
    for rows in (conversations(300), conversations(300)[::-1], conversations(300) * 2):
        file = write(tmp_path / "rows.jsonl", *rows)
        data = DataConfig(
            train_file=file, streaming=True, validation_split_percentage=10, max_eval_samples=100, shuffle_buffer_size=9
        )
        train, held_out = stream_rows(data, tokenizer, 64, seed=0)
        inside = {tuple(row["input_ids"]) for row in itertools.islice(train.dataset, 900)}
        outside = {tuple(r.input_ids) for r in held_out.rendered}
        assert len(inside) + len(outside) == 300 and not inside & outside
        sides.append(outside)
    assert sides[0] == sides[1] == sides[2] and 15 < len(sides[0]) < 45


def test_a_bad_row_far_on(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "rows.jsonl", *conversations(250), "{", *conversations(5))
    train, _ = stream_rows(DataConfig(train_file=file, streaming=True), tokenizer, 64, seed=0)
    with pytest.raises(UserError, match=r"rows.jsonl:251: this line is not JSON"):
        list(train.dataset)
    train, _ = stream_rows(DataConfig(train_file=file, streaming=True, on_bad_row="skip"), tokenizer, 64, seed=0)
    assert len(list(itertools.islice(train.dataset, 255))) == 255
    assert train.counts()["rows_skipped"] == 1
    assert any("1 bad row was skipped" in note and "rows.jsonl:251" in note for note in train.notes("training rows"))


def test_a_share_that_holds_nothing_out(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "rows.jsonl", *conversations(5))
    data = DataConfig(train_file=file, streaming=True, validation_split_percentage=0.01, max_eval_samples=10)
    with pytest.raises(UserError, match=r"validation_split_percentage=0\.01 holds none of these rows out"):
        stream_rows(data, tokenizer, 64, seed=0)


def test_the_first_row_is_there_at_once(tmp_path: Path, tokenizer: Any) -> None:
    """However long the file is: an endless one, here."""
    reader = tmp_path / "endless.py"
    reader.write_text(
        "import itertools\n"
        "from gemma_tune.data.records import Record\n"
        "def rows(source, data):\n"
        "    for i in itertools.count():\n"
        "        yield Record(f'{source}:{i}', text=f'row {i}')\n"
    )
    file = write(tmp_path / "any.txt", "x")
    data = DataConfig(format=f"{reader}:rows", train_file=file, streaming=True, shuffle_buffer_size=10)
    train, _ = stream_rows(data, tokenizer, 64, seed=0)
    assert len(list(itertools.islice(train.dataset, 5))) == 5
    assert train.read < 300


def test_json_stays_json(tmp_path: Path) -> None:
    """`datasets` makes a struct of every field of all rows; what a row lacks must not come out as null."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    write(tmp_path / "train.jsonl", {**conversations(1)[0], "tools": json.dumps([tool])}, *conversations(2)[1:])
    train, _ = read_records(DataConfig(dataset_name=str(tmp_path)), seed=0)
    assert [r.tools for r in train] == [[tool], None]


def test_the_rows_that_a_stream_held_out_are_found_again(tmp_path: Path, tokenizer: Any) -> None:
    """By what measures the model later: the same share of the same rows, and no other ones."""
    file = write(tmp_path / "rows.jsonl", *conversations(200))
    data = DataConfig(train_file=file, streaming=True, validation_split_percentage=7, max_eval_samples=9)
    _, held_out = stream_rows(data, tokenizer, 64, seed=3)
    again = load_held_out(data, tokenizer, 64, seed=3)
    assert [r.where for r in again.records] == [r.where for r in held_out.records] and again.records
