"""Labelled answers: read from every form, rendered with our masks, refused where they would be taken for good ones."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import DataConfig, ModelConfig
from gemma_tune.data.reading import training
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.unpaired import find_labelled, load_labelled, render_labelled
from gemma_tune.errors import UserError
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source

ASK = [{"role": "user", "content": "Why?"}]
SAY = [{"role": "assistant", "content": "So."}]


def data_of(folder: Path, rows: list[dict[str, Any]], **more: Any) -> DataConfig:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataConfig(**{"format": "unpaired_preference", "train_file": str(file), **more})


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(find_source(ModelConfig(model_name_or_path=str(tiny))))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "completion": "So."},
        {"prompt": ASK, "completion": SAY},
        {"messages": [*ASK, *SAY]},
    ],
    ids=["texts", "messages", "conversation"],
)
def test_forms(row: dict[str, Any], tmp_path: Path) -> None:
    rows = [{**row, "label": label} for label in (True, False, 1, 0, "true", "False", "1", "0", 1.0, 0.0)]
    found = list(training(data_of(tmp_path, rows)))
    assert [r.messages for r in found] == [[*ASK, *SAY]] * 10
    assert [r.desirable for r in found] == [True, False] * 5
    assert found[1].row["label"] is False and found[1].where.endswith("rows.jsonl:2")


@pytest.mark.parametrize("name", ["label", "kto_tag", "desirable"])
def test_names_of_the_label(tmp_path: Path, name: str) -> None:
    """Those under which other formats refuse a bad answer, with this one as the way out."""
    rows = [{"messages": [*ASK, *SAY], name: label} for label in (True, False, "no", "yes")]
    assert [r.desirable for r in training(data_of(tmp_path, rows))] == [True, False, False, True]
    (tmp_path / "none.jsonl").write_text(json.dumps({"messages": [*ASK, *SAY], name: None}), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name} is missing \(null or NaN\): write true"):
        list(training(DataConfig(format="unpaired_preference", train_file=str(tmp_path / "none.jsonl"))))


def test_csv(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "completion", "label"], ["Why?", "So.", "True"], ["Why?", "No.", "0"]])
    found = list(training(DataConfig(format="unpaired_preference", train_file=str(tmp_path / "rows.csv"))))
    assert [r.desirable for r in found] == [True, False]


def test_earlier_answers_are_history(tmp_path: Path, tokenizer: Any) -> None:
    turns = [*ASK, {"role": "assistant", "content": "Because."}, {"role": "user", "content": "And?"}, *SAY]
    (record,) = training(data_of(tmp_path, [{"messages": turns, "label": False}]))
    (answer,) = render_labelled(record, tokenizer).all
    said = tokenizer.decode(answer.completion)
    assert said.startswith("So.") and answer.completion[-1] in tokenizer.convert_tokens_to_ids(["<end_of_turn>"])
    assert "Because." in tokenizer.decode(answer.prompt) and not answer.desirable
    row = answer.row
    assert [i for i in row.labels if i != -100] == answer.completion and row.input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("form", ["preference", "unpaired_preference"])
def test_pairs_are_unpaired(form: str, tmp_path: Path, tokenizer: Any) -> None:
    """As `trl.unpair_preference_dataset`: the good answer with true, the bad one with false; and rows may be mixed."""
    rows = [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": "Who?", "chosen": "I.", "rejected": "U."},
    ]
    if form == "unpaired_preference":
        rows.append({"prompt": "Why?", "completion": "So!", "label": "false"})
    train, _ = load_labelled(data_of(tmp_path, rows, format=form), tokenizer, 64, 0)
    labels = [True, False, True, False, False][: len(train.dataset)]
    assert train.dataset["label"] == labels and (train.desirable, train.undesirable) == (2, len(labels) - 2)
    said = [tokenizer.decode(ids, skip_special_tokens=True) for ids in train.dataset["completion_ids"]]
    assert said == ["So.", "No.", "I.", "U.", "So!"][: len(labels)]
    assert train.counts()["desirable"] == 2 and len(train.rendered) == len(train.records) == len(rows)
    for record, row in zip(train.records, train.rendered, strict=True):
        assert row == render_labelled(record, tokenizer).sides[0]


def test_long_answers_are_cut_and_found_again(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": "Why?", "completion": "So it is. " * 30, "label": True},
        {"prompt": "Why? " * 60, "completion": "So.", "label": True},
        {"prompt": "Who?", "completion": "I.", "label": False},
    ]
    data = data_of(tmp_path, rows)
    train, _ = load_labelled(data, tokenizer, 32, 0)
    assert (train.read, train.cut, len(train.dropped), len(train.dataset), train.longest) == (3, 1, 1, 2, 32)
    assert find_labelled(data, tokenizer, 32, [train.rendered[0].input_ids]) == [f"{tmp_path}/rows.jsonl:1"]
    with pytest.raises(UserError, match=r"none of 3 rows has an answer within train\.max_length=3"):
        load_labelled(data, tokenizer, 3, 0)


def test_rows_with_opposite_labels_are_not_the_same(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "Why?", "completion": "So.", "label": label} for label in (True, False, True)]
    train, _ = load_labelled(data_of(tmp_path, rows), tokenizer, 64, 0)
    assert train.repeated == [f"{tmp_path}/rows.jsonl:3"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completion": "b"}, r"no field 'label'; found: prompt, completion"),
        ({"prompt": "a", "completion": "b", "label": None}, "label is missing"),
        ({"prompt": "a", "completion": "b", "label": float("nan")}, "label is missing"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "label is 'good', and must be true"),
        ({"prompt": "a", "completion": "b", "label": 0.5}, "label is 0.5"),
        ({"prompt": "a", "label": True}, "no field 'completion'"),
        ({"prompt": "a", "completion": "", "label": True}, "'completion' is empty"),
        ({"messages": [*ASK, *SAY, *ASK], "label": True}, "ends with the role 'user'"),
        ({"messages": [*ASK, *SAY, *ASK, {**SAY[0], "weight": 0}], "label": True}, "has the weight 0"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same answer"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl:1.*{said}"):
        list(training(data_of(tmp_path, [row])))


def test_a_record_without_a_label(tokenizer: Any) -> None:
    with pytest.raises(BadRow, match=r"x:1: this row says of no answer .* data=unpaired_preference"):
        render_labelled(Record("x:1", messages=[*ASK, *SAY]), tokenizer)


WILD = Path(os.environ.get("GEMMA_TUNE_TEST_DATA") or "unset") / "wild/04-kto-label"


@pytest.mark.skipif(not WILD.is_dir(), reason="GEMMA_TUNE_TEST_DATA names no folder with wild/")
def test_the_wild_rows(tokenizer: Any) -> None:
    for file in sorted(WILD.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        train, _ = load_labelled(DataConfig(format="unpaired_preference", train_file=str(file)), tokenizer, 512, 0)
        assert train.dataset["label"] == [row["label"] for row in rows]


LABELLED = ["data=unpaired_preference", "data.train_file={file}", "tracker=none"]


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("lora_sft", [], "would take bad answers .* for good ones; use recipe=kto"),
        ("dpo", [], "use recipe=kto"),
        ("grpo", ["data.test_files.test={file}"], "use recipe=kto"),
        ("evaluate", ["data.train_file=", "data.validation_file={file}"], "held_out_loss would take bad answers"),
        (
            "kto",
            ["eval.evaluators=[held_out_loss,preference]"],
            r"held_out_loss would .* eval\.evaluators=\[preference\]",
        ),
        ("kto", ["train.per_device_train_batch_size=1"], r"KL reference point .* set it to 2 or more"),
        ("kto", ["train.loss_type=sigmoid"], "no loss of TRL's KTOTrainer; there are kto, apo_zero_unpaired"),
        ("kto", ["train.train_sampling_strategy=sequential"], "has no effect with recipe=kto"),
        ("kto", ["data.streaming=true", "train.max_steps=2"], "data.streaming=true has no effect with recipe=kto"),
        ("kto", ["train.packing=true"], "train.packing has no effect with recipe=kto"),
        (
            "dpo",
            ["data=preference", "train.desirable_weight=2"],
            "train.desirable_weight has no effect with recipe=dpo",
        ),
    ],
)
def test_refused(recipe: str, words: list[str], said: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    every = {w.split("=", 1)[0]: w.format(file=file) for w in [*LABELLED, *words]}
    with pytest.raises(UserError, match=said):
        compose_config(recipe, list(every.values()))


def test_without_the_reference_point_a_batch_may_be_one(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    words = [w.format(file=tmp_path / "rows.jsonl") for w in LABELLED]
    compose_config("kto", [*words, "train.loss_type=apo_zero_unpaired", "train.per_device_train_batch_size=1"])
    compose_config("preview", [w for w in words if not w.startswith("tracker")])
