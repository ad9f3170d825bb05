"""What a file has beside its rows is listed or refused, and names to ignore that no row has are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forms_at_hand import tokenizer_of
from row_files import refusal, turn, write

from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.data.reading import SplitReader, read_tests, training
from gemma_tune.data.remarks import remark_lines
from gemma_tune.steps.data import test_notes as notes_of_tests

ROWS = [{"messages": turn("Why?", "So."), "id": n} for n in range(3)]


def lines(**keys: Any) -> list[str]:
    part: SplitReader = training(DataConfig(**keys))
    for _ in range(2):  # the second pass reads from the cache
        list(part)
    return remark_lines(part.remarks, "training rows")


def json_file(folder: Path, value: Any, name: str = "rows.json") -> str:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize("rows", [ROWS, [{"messages": turn("Why?", "So.")}]])
def test_fields_beside_the_rows(tmp_path: Path, rows: list[Any]) -> None:
    ids = "id: 3 rows; " if rows is ROWS else ""
    file = json_file(tmp_path, {"version": 1, "license": "MIT", "note": "", "data": rows})
    said = f"training rows: not used of {file}: {ids}beside the rows: version, license (data.ignore_fields silences"
    (line,) = lines(train_file=file)
    assert line.startswith(said)
    (line,) = lines(train_file=file, field="data")
    assert line.startswith(said)
    deep = json_file(tmp_path, {"version": 1, "out": {"count": 3, "items": rows}}, "deep.json")
    (line,) = lines(train_file=deep, field="out.items")
    assert f"{ids}beside the rows: version, out.count (" in line
    assert not lines(train_file=file, ignore_fields=["version", "license", *["id"] * bool(ids)])
    (line,) = notes_of_tests(read_tests(DataConfig(test_files={"mine": file})))
    assert f"{ids}beside the rows: version, license (" in line


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ({"system": "Be brief."}, "the field 'system' stands beside the rows, and no row gets it: write it into each"),
        ({"tools": [{"name": "f"}]}, "'tools' stands beside the rows"),
        ({"images": ["a.png"]}, "'images' holds what isn't read here"),
        ({"label": False}, "'label' says that this answer is a bad one"),
    ],
)
def test_fields_beside_the_rows_that_have_a_meaning(tmp_path: Path, beside: dict[str, Any], says: str) -> None:
    file = json_file(tmp_path, {**beside, "data": ROWS})
    if not beside.keys() & {"images", "label"}:  # else it is a row
        assert says in refusal(DataConfig(train_file=file))
    message = refusal(DataConfig(train_file=file, field="data"))
    assert message.startswith(f"{file}: ") and says in message
    assert says in refusal(DataConfig(train_file=file, field="data", on_bad_row="skip"))
    part = training(DataConfig(train_file=file, field="data", ignore_fields=[*beside, "id"]))
    assert len(list(part)) == 3 and not remark_lines(part.remarks, "training rows")


def test_an_index_of_pandas_with_a_meaning(tmp_path: Path) -> None:
    table = {"columns": ["prompt", "completion"], "index": [0, 1], "data": [["a", "b"], ["c", "d"]]}
    assert not lines(train_file=json_file(tmp_path, table))
    (line,) = lines(train_file=json_file(tmp_path, {**table, "index": ["x", "y"]}))
    assert "beside the rows: index (" in line


def test_of_several_lists_the_longest_is_advised(tmp_path: Path) -> None:
    """As a data set's server answers: its fields, and its rows."""
    value = {"features": [{"name": "messages"}], "rows": ROWS, "num_rows_total": 3}
    assert refusal(DataConfig(train_file=json_file(tmp_path, value))).endswith(
        "features, rows; say which to read: data.field=rows"
    )


def test_a_column_without_a_name(tmp_path: Path) -> None:
    """pandas' index."""
    file = tmp_path / "rows.csv"
    file.write_text(",prompt,completion\n0,Why?,So.\n", encoding="utf-8")
    (line,) = lines(train_file=str(file))
    assert f"not used of {file}: '': 1 row (" in line
    assert not lines(train_file=str(file), ignore_fields=[""])


def test_names_to_ignore_that_no_row_has(tmp_path: Path) -> None:
    rows = [*ROWS, {"messages": [{**m, "weight": 1, "x": 1} for m in turn("a", "b")][1:]}]
    rows[-1]["messages"].insert(0, {"role": "user", "content": "a"})
    file, other = write(tmp_path / "a.jsonl", *ROWS), write(tmp_path / "b.jsonl", rows[-1])
    names = ["catgory", "ID", "messages.x", "messages.weight", "idd"]
    (listed, *warnings) = lines(
        train_files={"a": file, "b": other}, ignore_fields=names, stopping_strategy="all_exhausted"
    )
    assert "not used of" in listed and "id: 3 rows" in listed
    assert warnings == [
        "warning: training rows: no row has ID of data.ignore_fields. Did you mean id?",
        "warning: training rows: no row has catgory of data.ignore_fields.",
        "warning: training rows: no row has idd of data.ignore_fields. Did you mean id?",
    ]
    assert not lines(train_file=file, ignore_fields=["id"])
    train, _ = load_rows(DataConfig(train_file=file, ignore_fields=["id", "lang"]), tokenizer_of("gemma3"), 64, 0)
    assert "warning: training rows: no row has lang of data.ignore_fields." in train.notes("training rows")


def test_only_training_rows_are_asked_for_names_to_ignore(tmp_path: Path) -> None:
    """A test set may lack what the training set has."""
    file = write(tmp_path / "test.jsonl", {"messages": turn("a", "b")})
    data = DataConfig(
        train_file=write(tmp_path / "train.jsonl", *ROWS), validation_file=file, test_files={"mine": file},
        ignore_fields=["id"],
    )  # fmt: skip
    train, held_out = load_rows(data, tokenizer_of("gemma3"), 64, 0)
    notes = [*train.notes("training rows"), *held_out.notes("held-out rows"), *notes_of_tests(read_tests(data))]
    assert not any("ignore_fields" in note for note in notes)
