"""Readers of the user's own: bad answers aren't taken for good ones, and keys that don't reach them are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forms_at_hand import tokenizer_of
from row_files import write

from gemma_tune.config import ChatConfig, DataConfig
from gemma_tune.data.loading import load_held_out, load_rows
from gemma_tune.data.prompts import read_chat_prompts
from gemma_tune.data.reading import check_first_rows, read_tests, training
from gemma_tune.data.stream import stream_rows
from gemma_tune.data.unpaired import load_labelled
from gemma_tune.errors import UserError
from gemma_tune.rl.tasks import Tasks

READER = """
from gemma_tune.data.records import Record

def read(source, data):
    for n, good in enumerate((True, None, False, True), start=1):
        said = [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": "So."}]
        yield Record(f"{source}:{n}", messages=said, desirable=good)
"""


@pytest.fixture
def own(tmp_path: Path) -> DataConfig:
    (tmp_path / "mine.py").write_text(READER, encoding="utf-8")
    return DataConfig(format=f"{tmp_path}/mine.py:read", train_file=write(tmp_path / "rows.jsonl", {}))


@pytest.mark.parametrize("load", [load_rows, stream_rows])
def test_bad_answers_are_not_trained(own: DataConfig, load: Any) -> None:
    tokenizer = tokenizer_of("gemma3")
    with pytest.raises(UserError, match=r"rows.jsonl:3: desirable=False says .* recipe=kto learns from both"):
        load(own, tokenizer, 64, 0)
    own.on_bad_row = "skip"
    train, _ = load(own, tokenizer, 64, 0)
    assert (train.read, len(train.left_out())) == (3, 1) and "rows.jsonl:3" in train.left_out()[0]
    assert load(own, tokenizer, 64, 0, labels=True)[0].read == 4  # shown, not trained


def test_bad_answers_are_not_compared_with(own: DataConfig) -> None:
    with pytest.raises(UserError, match=r"rows.jsonl:3: desirable=False says"):
        Tasks(list(training(own)), tokenizer_of("gemma3"), 64)
    with pytest.raises(UserError, match=r"rows.jsonl:3 has a bad answer"):
        read_tests(DataConfig(format=own.format, test_files={"mine": own.train_file}))


def test_labels_of_a_reader_reach_kto(own: DataConfig, tmp_path: Path) -> None:
    labelled = READER.replace("None, ", "")
    (tmp_path / "mine.py").write_text(labelled, encoding="utf-8")
    train, _ = load_labelled(own, tokenizer_of("gemma3"), 64, 0)
    assert (train.desirable, train.undesirable) == (2, 1)
    held_out = load_held_out(
        DataConfig(format=own.format, validation_file=own.train_file), tokenizer_of("gemma3"), 64, 0
    )
    assert [record.desirable for record in held_out.records] == [True, False, True]


@pytest.mark.parametrize(("key", "value"), [("field", "items"), ("encoding", "cp1252"), ("sample_by", "line")])
def test_keys_that_do_not_reach_a_reader(own: DataConfig, key: str, value: str) -> None:
    setattr(own, key, value)
    with pytest.raises(UserError, match=rf"^data.{key} has no effect: .*mine.py:read is a reader of your own, which"):
        check_first_rows(own)
    hub = DataConfig(dataset_name="me/rows", **{key: value})
    with pytest.raises(UserError, match=rf"^data.{key} has no effect: the rows of data.dataset_name"):
        check_first_rows(hub)


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
@pytest.mark.parametrize("codec", ["cp1252", "utf-16"])
def test_prompts_have_no_encoding_to_set(tmp_path: Path, name: str, codec: str) -> None:
    """recipe=chat reads no `data.*`."""
    file = tmp_path / name
    file.write_bytes(('{"prompt": "Où?"}' if name.endswith("l") else "Où?").encode(codec))
    with pytest.raises(UserError, match="UTF-") as caught:
        read_chat_prompts(ChatConfig(prompts_file=str(file)))
    assert "save" in str(caught.value) and "data." not in str(caught.value)
    with pytest.raises(UserError, match=r"data\.encoding="):
        list(training(DataConfig(train_file=str(file), sample_by="line")))


USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, USER]}, {"messages": [USER, {"role": "system", "content": "S"}, USER]},
        {"messages": [ANSWER, USER]}, {"messages": [{**USER, "images": ["a"]}]},
        {"messages": [USER], "tools": {"name": "f"}}, {"prompt": None},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "tool_use", "name": "f"},
                                                               {"type": "text", "text": "a"}]}, USER]},
    ],
)  # fmt: skip
def test_prompts_that_are_refused_name_no_key_of_the_data(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        read_chat_prompts(ChatConfig(prompts_file=write(tmp_path / "p.jsonl", row)))
    assert "p.jsonl:1: " in str(caught.value) and "data." not in str(caught.value).partition("p.jsonl")[2]
    assert not str(caught.value).endswith((":", ",", "("))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "def read(path): return []",
            r"mine\.py:read: its parameters are \(path\), and it is called with \(path, data\)",
        ),
        ("def read(path, data, extra): return []", r"its parameters are \(path, data, extra\), and it is called with"),
        ("def read(path, data): pass", r"mine\.py:read gave NoneType, no list of Record; yield or return them"),
    ],
)
def test_readers_that_cannot_be_called(own: DataConfig, tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(source + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=said):
        check_first_rows(own)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{}['q']", r"mine\.py:2: KeyError: 'q' \(while reading .*rows\.jsonl\)"),
        ("yield good(path)\n    undefined", r"mine\.py:3: NameError: .* \(after the row .*rows\.jsonl:1\)"),
        ("raise SystemExit", r"mine\.py:2: SystemExit: it would end the whole command"),
        ("open('nix.txt')", r"mine\.py:2: FileNotFoundError: .*relative paths count from the current folder"),
        ("yield Record('w', messages='hello')", r"mine\.py:2: TypeError: the field messages of a Record must be"),
        ("yield Record('w', messages=['hello'])", r"messages\[0\] of a Record must be a dict with role and content"),
        ("yield Record('w', text=3)", "the field text of a Record must be text, not int"),
        ("yield Record('w', text='a', tools='t')", "the field tools of a Record must be a list of function schemas"),
        ("yield Record('w', text='a', row=['t'])", "the field row of a Record must be a dict, not list"),
        ("yield Record(None, text='a')", r"the field where of a Record must be text with file and line"),
        ("yield Record('w', message=[])", r"mine\.py:2: TypeError: .* A Record takes where, messages, text, tools,"),
        ("yield BadRow('line 3 is bad')", r"rows\.jsonl: line 3 is bad"),
        ("raise BadRow('line 3 is bad')", r"rows\.jsonl: line 3 is bad"),
    ],
)  # fmt: skip
def test_readers_that_raise(own: DataConfig, tmp_path: Path, body: str, said: str) -> None:
    """One message with file and line of the user's own code."""
    text = f"""def read(path, data):
    {body}
    yield good(path)

from gemma_tune.data.records import BadRow, Record

def good(path):
    return Record(f"{{path}}:1", text="Some words.")
"""
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        check_first_rows(own)
    if "BadRow" not in body:
        assert str(caught.value).startswith(f"data.format={own.format}: mine.py:")
