"""The formats read from small files, the share held out, and what is cut and dropped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from row_files import SCRIPTS, read_records, refusal, turn, write
from transformers import AutoTokenizer

from gemma_tune.chat import render_chat, render_text
from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.loading import load_rows
from gemma_tune.data.records import Record
from gemma_tune.data.tokenized import render_rows
from gemma_tune.errors import UserError
from gemma_tune.run.paths import ASSETS


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "tiny")


def read(data: DataConfig) -> list[Record]:
    train, held_out = read_records(data, seed=0)
    assert held_out == []
    return train


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("escaped", [False, True])
def test_files_as_windows_and_others_write_them(tmp_path: Path, bom: bytes, end: bytes, escaped: bool) -> None:
    rows = [json.dumps({"text": f" {s}\r\n"}, ensure_ascii=escaped).encode() for s in SCRIPTS]
    path = tmp_path / "text.jsonl"
    path.write_bytes(bom + end.join([b"", rows[0], b"", b"  ", *rows[1:]]))  # no line break at the end
    records = read(DataConfig(format="text", train_file=str(path)))
    assert [r.text for r in records] == [f" {s}\r\n" for s in SCRIPTS]
    lines = [2, *range(5, 4 + len(SCRIPTS))]
    assert [r.where for r in records] == [f"{path}:{n}" for n in lines]


def test_text(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "text.jsonl", *({"body": s, "text": "not this"} for s in SCRIPTS))
    rows, _ = load_rows(DataConfig(format="text", train_file=file, text_column="body"), tokenizer, 512, seed=0)
    assert rows.rendered == [render_text(tokenizer, s) for s in SCRIPTS]
    assert all(r.messages is None and r.tools is None for r in rows.records)


@pytest.mark.parametrize("system_column", [None, "rule"])
def test_columns_equal_a_conversation_written_by_hand(
    tmp_path: Path, tokenizer: Any, system_column: str | None
) -> None:
    pairs = [(s, f" 4: {s}\n", f"Answer {s}") for s in SCRIPTS]
    columns = DataConfig(
        format="columns",
        train_file=write(tmp_path / "columns.jsonl", *({"q": q, "a": a, "rule": r} for q, a, r in pairs)),
        prompt_column="q",
        completion_column="a",
        system_column=system_column,
    )
    by_hand = [turn(q, a, r if system_column else None) for q, a, r in pairs]
    messages = DataConfig(train_file=write(tmp_path / "messages.jsonl", *({"messages": m} for m in by_hand)))
    (ours, _), (theirs, _) = (load_rows(d, tokenizer, 512, seed=0) for d in (columns, messages))
    assert [r.messages for r in ours.records] == by_hand
    assert ours.rendered == theirs.rendered == [render_chat(tokenizer, m) for m in by_hand]
    assert ours.counts() == theirs.counts()


def test_messages_with_columns_of_other_names(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "Füge hinzu", "parameters": {}}}
    rows = [
        {"chat": turn("Hi", "Hello", "Be kind"), "functions": [tool], "messages": 5, "tools": 5},
        {"chat": turn("Hi", "Hello"), "functions": json.dumps([tool])},
        {"chat": turn("Hi", "Hello")},
    ]
    file = write(tmp_path / "rows.jsonl", *rows)
    records = read(DataConfig(train_file=file, messages_column="chat", tools_column="functions"))
    assert [r.messages for r in records] == [row["chat"] for row in rows]
    assert [r.tools for r in records] == [[tool], [tool], None]


def test_arguments_as_json_text_equal_a_mapping(tmp_path: Path, tokenizer: Any) -> None:
    arguments = {"city": "東京", "n": [1, 2.5, None, {"deep": True}], "text": 'a "b"\n'}

    def conversation(form: Any) -> dict[str, Any]:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": form}}
        question, answer = turn("Hi", "Done")
        asked = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"messages": [question, asked, {"role": "tool", "tool_call_id": "1", "content": "{}"}, answer]}

    forms = [arguments, json.dumps(arguments), json.dumps(arguments, ensure_ascii=False, indent=2)]
    file = write(tmp_path / "rows.jsonl", *(conversation(form) for form in forms))
    rows, _ = load_rows(DataConfig(train_file=file), tokenizer, 512, seed=0)
    assert rows.records[0].messages == rows.records[1].messages == rows.records[2].messages
    assert rows.rendered[0] == rows.rendered[1] == rows.rendered[2]
    assert "東京" in tokenizer.decode(rows.rendered[1].input_ids)


def test_a_reader_of_the_users_own(tmp_path: Path, tokenizer: Any) -> None:
    reader = tmp_path / "my_reader.py"
    reader.write_text(
        "from gemma_tune.data.messages import checked_messages\n"
        "from gemma_tune.data.records import BadRow, Record\n"
        "def rows(path, data):\n"
        "    for n, line in enumerate(path.read_text().splitlines(), 1):\n"
        "        if '=' not in line:\n"
        "            raise BadRow(f'{path}:{n}: no equals sign.')\n"
        "        q, a = line.split('=')\n"
        "        messages = [{'role': 'user', 'content': q}, {'role': 'assistant', 'content': a}]\n"
        "        yield Record(f'{path}:{n}', messages=checked_messages(messages, f'{path}:{n}'))\n"
    )
    data = DataConfig(format=f"{reader}:rows", train_file=write(tmp_path / "sums.txt", "1+1=2", "2+2=4"))
    rows, _ = load_rows(data, tokenizer, 512, seed=0)
    assert rows.rendered == [render_chat(tokenizer, turn(q, a)) for q, a in (("1+1", "2"), ("2+2", "4"))]
    file = write(tmp_path / "bad.txt", "1+1=2", "what?")
    assert refusal(DataConfig(format=data.format, train_file=file)) == f"{file}:2: no equals sign."
    assert "there is no function 'row'; it has" in refusal(DataConfig(format=f"{reader}:row", train_file=file))


def numbered(path: Path, n: int) -> str:
    return write(path, *({"text": f"row {i}"} for i in range(n)))


@pytest.mark.parametrize(
    ("rows", "percent", "share"), [(100, 10, 10), (7, 50, 4), (10, 90, 9), (3, 1, 1), (200, 2.5, 5)]
)
def test_a_share_is_held_out(tmp_path: Path, rows: int, percent: float, share: int) -> None:
    file = numbered(tmp_path / "rows.jsonl", rows)
    data = DataConfig(format="text", train_file=file, validation_split_percentage=percent)
    train, held_out = read_records(data, seed=0)
    assert len(held_out) == share
    numbers = [[int((r.text or "").split()[1]) for r in part] for part in (train, held_out)]
    assert sorted(numbers[0] + numbers[1]) == list(range(rows))
    assert all(part == sorted(part) for part in numbers)


def test_the_share_is_drawn_with_the_seed(tmp_path: Path) -> None:
    file = numbered(tmp_path / "rows.jsonl", 100)
    data = DataConfig(format="text", train_file=file, validation_split_percentage=10)
    assert read_records(data, seed=1) == read_records(data, seed=1)
    draws = {tuple(r.where for r in read_records(data, seed)[1]) for seed in range(5)}
    assert len(draws) == 5


def test_too_few_rows_for_a_share(tmp_path: Path) -> None:
    file = numbered(tmp_path / "rows.jsonl", 1)
    message = refusal(DataConfig(format="text", train_file=file, validation_split_percentage=10))
    assert message == f"data.train_file={file}: holding out 1 of 1 row leaves none to train on."


def test_a_validation_file_and_the_limits(tmp_path: Path) -> None:
    train, held_out = numbered(tmp_path / "a.jsonl", 20), numbered(tmp_path / "b.jsonl", 10)
    data = DataConfig(format="text", train_file=train, validation_file=held_out)

    def where(data: DataConfig) -> tuple[list[str], list[str]]:
        parts = read_records(data, seed=0)
        return [r.where for r in parts[0]], [r.where for r in parts[1]]

    all_train, all_held_out = [f"{train}:{n}" for n in range(1, 21)], [f"{held_out}:{n}" for n in range(1, 11)]
    assert where(data) == (all_train, all_held_out)
    data.max_train_samples, data.max_eval_samples = 5, 3
    assert where(data) == (all_train[:5], all_held_out[:3])
    data.max_train_samples, data.max_eval_samples = 50, 50
    assert where(data) == (all_train, all_held_out)
    data.validation_file, data.validation_split_percentage = None, 50
    data.max_train_samples, data.max_eval_samples = 10, 2
    kept, drawn = where(data)
    assert len(kept) == 5
    assert len(drawn) == 2
    assert set(kept) | set(drawn) < set(all_train[:10])


def test_long_rows_are_cut_and_counted_and_dropped_without_an_answer(tmp_path: Path, tokenizer: Any) -> None:
    conversations = [turn("Hi", "Hello"), turn("Hi", "one two " * 50), turn("one two " * 50, "Hello")]
    file = write(tmp_path / "rows.jsonl", *({"messages": m} for m in conversations))
    rows, _ = load_rows(DataConfig(train_file=file), tokenizer, 32, seed=0)
    short, long = (render_chat(tokenizer, m) for m in conversations[:2])
    assert len(short.input_ids) < 32 < len(long.input_ids)
    assert rows.rendered == [short, long.cut(32)]
    assert [r.where for r in rows.records] == [f"{file}:1", f"{file}:2"]
    assert rows.dropped == [f"{file}:3"]
    assert rows.counts() == {
        "longest_row": 32,
        "rows_read": 3,
        "rows": 2,
        "rows_cut": 2,
        "rows_dropped": 1,
        "rows_skipped": 0,
        "rows_repeated": 0,
        "rows_leaked": 0,
        "tokens": len(short.input_ids) + 32,
        "trained_tokens": sum(label != -100 for label in short.labels + long.labels[:32]),
    }


def test_a_row_of_just_max_length_is_whole(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "rows.jsonl", {"messages": turn("Hi", "Hello")})
    whole = render_chat(tokenizer, turn("Hi", "Hello"))
    for max_length, cut in ((len(whole.input_ids), 0), (len(whole.input_ids) - 1, 1)):
        rows, _ = load_rows(DataConfig(train_file=file), tokenizer, max_length, seed=0)
        assert rows.cut == cut
        assert rows.rendered == [whole.cut(max_length)]


def test_no_row_left_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "rows.jsonl", *[{"messages": turn("one two " * 50, "Hello")}] * 3)
    with pytest.raises(UserError, match=r"training rows: none of 3 rows .* train.max_length=32; raise it"):
        load_rows(DataConfig(train_file=file), tokenizer, 32, seed=0)
    good = write(tmp_path / "good.jsonl", {"messages": turn("Hi", "Hello")})
    with pytest.raises(UserError, match="held-out rows: none of 3 rows"):
        load_rows(DataConfig(train_file=good, validation_file=file), tokenizer, 32, seed=0)
    assert render_rows([], tokenizer, 32, "held-out rows").counts()["rows"] == 0


def test_prompts_alone(tmp_path: Path) -> None:
    """Rewards may need no answer; one that is there stays. And every field reaches them."""
    asked, said = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}
    rows: dict[str, dict[str, Any]] = {
        "messages": {"messages": [asked], "level": 3},
        "sharegpt": {"conversations": [{"from": "human", "value": "Hello?"}], "level": 3},
        "prompt_completion": {"prompt": "Hello?", "level": 3},
        "columns": {"question": [asked], "level": 3},
    }
    for name, row in rows.items():
        file = write(tmp_path / f"{name}.jsonl", row)
        column = "question" if name == "columns" else None
        data = DataConfig(format="auto", train_file=file, prompts_only=True, prompt_column=column)
        (record,) = list(reading.training(data))
        assert (record.messages, record.prompt, record.wanted) == ([asked], [asked], None), name
        assert record.row["level"] == 3
        refusal(DataConfig(format="auto", train_file=file, prompt_column=column, completion_column=column and "answer"))
    talk = [*turn("1?", "2."), asked]
    file = write(tmp_path / "talk.jsonl", {"messages": talk})
    (record,) = list(reading.training(DataConfig("auto", file, prompts_only=True)))
    assert (record.prompt, record.wanted, record.answer) == (talk, None, "")
    file = write(tmp_path / "answered.jsonl", {"prompt": "Hello?", "completion": "Hi."}, {"prompt": "Hello?"})
    records = list(reading.training(DataConfig(format="auto", train_file=file, prompts_only=True)))
    assert [r.wanted for r in records] == [said, None]


def test_columns_with_messages(tmp_path: Path) -> None:
    earlier = [*turn("1?", "2."), {"role": "user", "content": "3?"}]
    file = write(tmp_path / "rows.jsonl", {"q": earlier, "a": "4.", "rule": "Be brief."})
    columns = DataConfig("columns", file, prompt_column="q", completion_column="a", system_column="rule")
    (record,) = read(columns)
    begin, end = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "4."}
    history = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in earlier]
    assert record.messages == [begin, *history, end]
    cell = write(tmp_path / "cell.jsonl", {"q": json.dumps(earlier), "a": "4.", "rule": "Be brief."})
    assert read(replace(columns, train_file=cell))[0].messages == record.messages
    alone = write(tmp_path / "alone.jsonl", {"q": "[1] 3?", "rule": "Be brief."})
    (record,) = list(reading.training(replace(columns, train_file=alone, prompts_only=True)))
    assert record.prompt == [begin, {"role": "user", "content": "[1] 3?"}]


def test_the_fields_of_a_users_reader_reach_rewards(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from gemma_tune.data.records import Record\n"
        "def rows(source, data):\n"
        "    messages = [{'role': 'user', 'content': '1?'}, {'role': 'assistant', 'content': '2.'}]\n"
        "    record = Record(f'{source}:1', messages=messages)\n"
        "    record.row['level'] = 3\n"
        "    yield record\n"
    )
    file = write(tmp_path / "rows.txt", "1")
    (record,) = read(DataConfig(format=f"{tmp_path}/mine.py:rows", train_file=file))
    assert record.row == {"level": 3}
