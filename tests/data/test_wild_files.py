"""Files and folders as people have them: those of the test data, and more of their kinds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from row_files import refusal, turn, write

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import DataConfig
from gemma_tune.data.files import find_files
from gemma_tune.data.reading import check_first_rows, data_files, training
from gemma_tune.errors import UserError
from gemma_tune.run.paths import FILE_TYPES

WILD = Path(os.environ.get("GEMMA_TUNE_TEST_DATA", ""), "wild")
wild = pytest.mark.skipif(not (WILD / "14-json-layouts").is_dir(), reason="GEMMA_TUNE_TEST_DATA has no wild/")


def answers(name: object, **options: Any) -> list[str]:
    return [record.answer or str(record.text) for record in training(DataConfig(train_file=str(name), **options))]


def rows(*said: str) -> list[dict[str, Any]]:
    return [{"messages": turn("Hi", text)} for text in said]


@wild
def test_the_layouts_of_the_test_data() -> None:
    assert answers(WILD / "14-json-layouts" / "pretty.json") == ["Hi.", "Hi."]
    for name in ("lists", "columns"):
        assert answers(WILD / "14-json-layouts" / f"{name}.json") == ["Hi.", "Bye."]


@wild
def test_the_text_files_of_the_test_data() -> None:
    folder = WILD / "20-text-files"
    assert answers(folder / "corpus.txt") == ["A line of running text."]
    for name in ("a=b, c.jsonl", "rows (1).jsonl", "rows.jsonl.zst"):
        assert len(answers(folder / name)) >= 1
    assert "corpus.txt is running text (data=text)" in refusal(
        DataConfig(train_file=str(folder / "corpus.txt"), format="messages")
    )
    assert "holds running text (corpus.txt) beside rows" in refusal(DataConfig(train_file=str(folder)))


@wild
def test_splits_and_saved_sets_of_the_test_data() -> None:
    folders, saved = WILD / "19-folder-with-splits", WILD / "18-save-to-disk"
    mlx, snap = folders / "mlx", folders / "snap"
    assert refusal(DataConfig(train_file=str(mlx))).endswith(
        f": data.train_file={mlx}/train.jsonl data.validation_file={mlx}/valid.jsonl "
        f"data.test_files.test={mlx}/test.jsonl"
    )
    assert refusal(DataConfig(validation_file=str(mlx), train_file=f"{mlx}/train.jsonl")).endswith(
        f": data.validation_file={mlx}/valid.jsonl"
    )
    assert f"data.train_file={snap}/data/train-00000-of-00001.parquet" in refusal(DataConfig(train_file=str(snap)))
    assert len(answers(saved / "ds")) == len(answers(saved / "dd" / "train")) > len(answers(saved / "dd" / "test"))
    assert f"data.train_file={saved}/dd/train data.test_files.test={saved}/dd/test" in refusal(
        DataConfig(train_file=str(saved / "dd"))
    )


@pytest.mark.parametrize(("files", "fix"), [
    (("train.jsonl", "valid.jsonl", "test.jsonl"),
     "data.train_file={0}/train.jsonl data.validation_file={0}/valid.jsonl data.test_files.test={0}/test.jsonl"),
    (("data/train-00000.jsonl", "data/train-00001.jsonl", "data/dev-00000.jsonl"),
     "'data.train_file={0}/data/train-0000*.jsonl' data.validation_file={0}/data/dev-00000.jsonl"),
    (("training/a.jsonl", "training/b.jsonl", "evaluation/a.jsonl"),
     "data.train_file={0}/training data.test_files.test={0}/evaluation/a.jsonl"),
    (("a/my_train.jsonl", "b/my.val.jsonl"),
     "data.train_file={0}/a/my_train.jsonl data.validation_file={0}/b/my.val.jsonl"),
    (("contest.jsonl", "latest-trainer.jsonl", "devices/one.jsonl"), ""),
    (("train.jsonl", "more.jsonl"), ""),
    (("test/a.jsonl", "test/b.jsonl"), ""),
])  # fmt: skip
def test_a_folder_of_several_splits(tmp_path: Path, files: tuple[str, ...], fix: str) -> None:
    folder = tmp_path / "rows"  # no word of a split in its name
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, *rows(name))
    for name in (
        "dataset_infos.json",
        "config.json",
        "model.safetensors.index.json",
        "README.txt",
        "tokenizer_config.json",
    ):
        (folder / name).write_text("{}")
    data = DataConfig(train_file=str(folder))
    if fix:
        message = refusal(data)
        assert message.endswith(": " + fix.format(folder)) and "several splits" in message
    else:
        assert sorted(answers(folder)) == sorted(files)


def test_a_saved_data_set(tmp_path: Path) -> None:
    sets = DatasetDict(first=Dataset.from_list(rows("a", "b", "c")), second=Dataset.from_list(rows("d")))
    sets.save_to_disk(tmp_path / "both", num_shards={"first": 3, "second": 1})
    first = tmp_path / "both" / "first"
    state = json.loads((first / "state.json").read_text())
    state["_data_files"].reverse()
    (first / "state.json").write_text(json.dumps(state))
    shutil.copy(tmp_path / "both" / "second" / "data-00000-of-00001.arrow", first / "cache-1.arrow")
    assert answers(first) == ["c", "b", "a"]
    assert len(data_files(DataConfig(train_file=str(first)))) == 3
    message = refusal(DataConfig(train_file=str(tmp_path / "both")))
    assert "several splits (first: " in message and "second: second/data" in message
    for name, said in (("both", "first"), ("both/first", "train")):
        with pytest.raises(UserError, match=r"written by save_to_disk; read it as files: data.train_file=\S+/first$"):
            list(training(DataConfig(dataset_name=str(tmp_path / name), split=said)))
    (first / "data-00001-of-00003.arrow").unlink()
    assert "lacks data-00001-of-00003.arrow" in refusal(DataConfig(train_file=str(first)))


def test_a_local_folder_as_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "snap" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        Dataset.from_list(rows(split)).to_parquet(tmp_path / "snap" / "data" / f"{split}-00000-of-00001.parquet")
    data = DataConfig(dataset_name=str(tmp_path / "snap"))
    assert [record.answer for record in training(data)] == ["train"]
    assert [path.name[:4] for path in data_files(data)] == ["test", "trai"]
    for name, split in (("snap", "other"), ("missing", "train")):
        with pytest.raises(UserError) as caught:
            list(training(DataConfig(dataset_name=str(tmp_path / name), split=split)))
        assert "huggingface.co" not in str(caught.value) and f"{tmp_path}/{name}" in str(caught.value)


@pytest.mark.parametrize("name", ["a=b, c.jsonl", "rows (1).jsonl", "it's [v1] {x}.jsonl", "$HOME; #1 & é~.jsonl"])
def test_names_with_any_character(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, *rows("one"))
    assert answers(tmp_path / name) == answers(tmp_path) == ["one"]


@pytest.mark.parametrize(("name", "way"), [
    ("a.xlsx", 'pandas.read_excel("a.xlsx").to_parquet("rows.parquet")'), ("b.yaml", "yaml.safe_load"),
    ("c.pkl", "read_pickle"), ("d.db", "read_sql"), ("e.pdf", 'JSONL ({"text": "…"})'), ("f.zip", "unpack it"),
    ("g.what", "(or one of them .gz, .zst, .bz2, .xz);"),
])  # fmt: skip
def test_files_of_other_types(tmp_path: Path, name: str, way: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        find_files(str(tmp_path / name), "data.train_file")
    assert way in str(caught.value) and all(kind in str(caught.value) for kind in FILE_TYPES)


def test_keys_without_effect(tmp_path: Path) -> None:
    Dataset.from_list(rows("a")).to_parquet(tmp_path / "a.parquet")
    for options in ({"field": "a"}, {"sample_by": "line"}, {"encoding": "cp1252"}):
        (key,) = options
        with pytest.raises(UserError, match=f"data.{key} has no effect: it is for files of the types"):
            check_first_rows(DataConfig(train_file=str(tmp_path / "a.parquet"), **options))
    (tmp_path / "a.txt").write_text("One.")
    check_first_rows(DataConfig(train_file=str(tmp_path / "a.txt"), sample_by="line", encoding="cp1252"))


def test_names_on_the_command_line(tmp_path: Path) -> None:
    """Quoted for the shell alone, and for Hydra, too."""
    for name in ("a=b, c.jsonl", "rows (1).jsonl", "it's [v1] {x}.jsonl"):
        write(tmp_path / name, *rows("one"))
        for word in (f"data.train_file={tmp_path}/{name}", f'data.train_file="{tmp_path}/{name}"'):
            assert compose_config("preview", ["data=auto", word]).data.train_file == f"{tmp_path}/{name}"


@pytest.mark.parametrize("key", ["train_file", "dataset_name", "glob", "parent"])
@pytest.mark.parametrize("main", ["b2", None])
def test_two_snapshots_of_a_data_set_are_not_read_as_one(tmp_path: Path, key: str, main: str | None) -> None:
    """The Hub's cache keeps each version that was downloaded."""
    folder = tmp_path / "hub/datasets--me--rows"
    for name in ("a1", "b2"):
        (folder / "snapshots" / name / "data").mkdir(parents=True)
        write(folder / "snapshots" / name / "data/rows.jsonl", {"prompt": "a", "completion": name})
    (folder / "refs").mkdir()
    if main:
        (folder / "refs/main").write_text(main)
    name = {"glob": f"{folder}/snapshots/*/data/*.jsonl", "parent": str(folder.parent)}.get(key, str(folder))
    data = DataConfig(dataset_name=name) if key == "dataset_name" else DataConfig(train_file=name)
    said = refusal(data)
    places = [
        f"data.{'dataset_name' if key == 'dataset_name' else 'train_file'}={folder}/snapshots/{n}" for n in ("a1", "b2")
    ]
    assert "its 2 snapshots are versions of the same rows; name " in said
    assert said.endswith(f"that of its main branch: {places[1]}" if main else f"one: {' or '.join(places)}")
    data = DataConfig(train_file=f"{folder}/snapshots/b2")
    assert [r.answer for r in training(data)] == ["b2"]
