"""Files of the Berkeley Function-Calling Leaderboard: what is read from them, and what is said of bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.chat.calls import Call
from gemma_tune.errors import UserError
from gemma_tune.evals.bfcl import check_answer, read_bfcl


def write(path: Path, *rows: Any) -> Path:
    """Writes one line a row: bytes as they are, text as UTF-8, all else as JSON."""
    lines = [r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode() for r in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add one."}


def question(name: str = "simple_python_0", **other: Any) -> dict[str, Any]:
    return {"id": name, "question": [[USER]], "function": function(type="integer"), **other}


def truth(name: str = "simple_python_0", *calls: Any) -> dict[str, Any]:
    return {"id": name, "ground_truth": list(calls) or [{"f": {"a": [1]}}]}


def function(**schema: Any) -> list[dict[str, Any]]:
    """A function of the one argument `a`."""
    return [{"name": "f", "parameters": {"type": "dict", "properties": {"a": schema}, "required": []}}]


def array(items: str, kind: str = "array") -> dict[str, Any]:
    return {"type": kind, "items": {"type": items}}


def test_several_categories_in_a_file(tmp_path: Path) -> None:
    """Ids say the category, a system text may stand first, and the answers may stand in another order."""
    names = ["simple_1", "live_simple_2-1-0", "parallel_multiple_0", "live_parallel_3-0-0"]
    asked = [question(n, question=[[SYSTEM, USER]]) for n in names]
    file = write(tmp_path / "q.json", *asked)
    rows = read_bfcl(file, write(tmp_path / "a.json", *map(truth, reversed(names))))
    assert [r.category for r in rows] == ["simple", "live_simple", "parallel_multiple", "live_parallel"]
    assert all(check_answer([Call("f", {"a": 1})], r).right for r in rows)
    assert [r.where for r in rows] == [f"{file}:{i}" for i in (1, 2, 3, 4)]
    assert check_answer([], rows[2]).kind == "wrong_count"


def test_prompt_schema(tmp_path: Path) -> None:
    """Types are renamed at every depth, arguments called `type` are left alone, and the file's own are kept."""
    inner = {"type": "dict", "properties": {"type": {"type": "any"}, "at": array("float", "tuple")}}
    asked = question(function=[*function(type="array", items=inner, description="float"), *function(type="any")])
    asked["function"][1]["name"] = "g"
    (row,) = read_bfcl(
        write(tmp_path / "q.jsonl", asked),
        write(tmp_path / "a.jsonl", truth("simple_python_0", {"f": {"a": [[{"type": ["x"], "at": [[1.5]]}]]}})),
    )
    assert row.functions == asked["function"]
    at = {"type": "array", "items": {"type": "number", "format": "float"}}
    items = {"type": "object", "properties": {"type": {"type": "string"}, "at": at}}
    parameters = {"type": "object", "properties": {"a": {"type": "array", "items": items, "description": "float"}}}
    assert row.tools[0] == {
        "type": "function", "function": {"name": "f", "parameters": {**parameters, "required": []}}
    }  # fmt: skip
    assert row.gold() == [Call("f", {"a": [{"type": "x", "at": [1.5]}]})]
    assert check_answer(row.gold(), row).right


def test_gold_of_odd_rows(tmp_path: Path) -> None:
    """Optional keys of a mapping, a variable, an empty text that is required, an argument that the function lacks."""
    arguments = {"d": {"type": "dict"}, "l": array("integer"), "s": {"type": "string"}}
    parameters = {"type": "dict", "properties": arguments, "required": ["s"]}
    allowed = {"d": [{"k": ["", 1], "m": [2]}], "l": ["my_list"], "s": [""], "unheard_of": ["", 1]}
    asked = question(function=[{"name": "f", "parameters": parameters}])
    (row,) = read_bfcl(
        write(tmp_path / "q.jsonl", asked), write(tmp_path / "a.jsonl", truth("simple_python_0", {"f": allowed}))
    )
    assert row.gold() == [Call("f", {"d": {"m": 2}, "l": "my_list", "s": ""})]
    assert row.gold(optional=True) == [Call("f", {"d": {"k": 1, "m": 2}, "l": "my_list", "s": ""})]
    assert check_answer(row.gold(), row).right and check_answer(row.gold(optional=True), row).right


@pytest.mark.parametrize(
    ("questions", "answers", "said"),
    [
        ([question(), "{"], [truth()], "q.jsonl:2: this line is not JSON"),
        ([question()], [truth(), b"\xff"], "a.jsonl:2: the bytes are not UTF-8"),
        ([question(), "[]"], [truth()], "q.jsonl:2: this line is list"),
        ([], [truth()], "q.jsonl: the file holds no rows"),
        ([question(), question("simple_python_1")], [truth()], "q.jsonl:2: simple_python_1 has no answer in "),
        (
            [question()],
            [truth("simple_python_2"), truth(), truth("simple_python_1")],
            "a.jsonl:1: simple_python_2 (and 1 more) has no question in {q}; name the two files of one category",
        ),
        ([question(), question()], [truth()], "q.jsonl:2: simple_python_0 is already in {q}:1"),
        ([question("multi_turn_base_0")], [truth()], "q.jsonl:1: the category of 'multi_turn_base_0' is not"),
        ([question("simple_java_0")], [truth()], "the single-turn Python ones: simple_python, simple, multiple"),
        ([question("0")], [truth()], "q.jsonl:1: the category of '0' is not"),
        ([{**question(), "id": 0}], [truth()], "q.jsonl:1: there is no id"),
        ([question(question=[[USER], [USER]])], [truth()], "q.jsonl:1: the question has 2 turns; only"),
        ([question(question="Add one.")], [truth()], "q.jsonl:1: there is no question, a list of turns"),
        ([question(question=[[USER, USER]])], [truth()], "q.jsonl:1: roles must alternate"),
        (
            [question(question=[[USER, {"role": "assistant", "content": "Hm."}]])],
            [truth()],
            "q.jsonl:1: roles must alternate",
        ),
        ([question(question=[[{"role": "user", "content": "<bos>"}]])], [truth()], "q.jsonl:1: the text holds <bos>"),
        ([question(function=[])], [truth()], "q.jsonl:1: function is not a list"),
        ([question(function=[{"name": "f"}])], [truth()], "q.jsonl:1: a function isn't"),
        ([question(function=function(type="number[]"))], [truth()], "q.jsonl:1: f: the type of a is 'number[]'"),
        ([question(function=function(description="?"))], [truth()], "q.jsonl:1: f: the type of a is None"),
        (
            [question(function=function(type="number"))],
            [truth()],
            "a.jsonl:1: f: a is checked by its type, and 'number'",
        ),
        ([question(function=function(type="array"))], [truth()], "a.jsonl:1: f: a is checked by its type, and None"),
        ([question()], [{"id": "simple_python_0"}], "a.jsonl:1: ground_truth is not a list of calls"),
        ([question()], [truth("simple_python_0", "f(a=1)")], "a.jsonl:1: ground_truth is not a list of calls"),
        ([question()], [truth("simple_python_0", {"g": {}})], "a.jsonl:1: g is none of the question's functions"),
        ([question()], [truth("simple_python_0", {"f": [1]})], "a.jsonl:1: f: this is not a mapping"),
        (
            [question()],
            [truth("simple_python_0", {"f": {"a": 1}})],
            "a.jsonl:1: f: the allowed values of a are not a list",
        ),
        (
            [question()],
            [truth("simple_python_0", {"f": {"a": [1]}}, {"f": {"a": [2]}})],
            "a.jsonl:1: simple_python_0 has 2 calls, and a row of simple_python must have one",
        ),
        (
            [question(function=function(type="dict"))],
            [truth("simple_python_0", {"f": {"a": [{"k": "v"}]}})],
            "a.jsonl:1: f: a: an allowed mapping is not {{key: [allowed values]}}",
        ),
        (
            [question(function=function(**array("string")))],
            [truth("simple_python_0", {"f": {"a": [["x"], "x"]}})],
            "a.jsonl:1: f: a: some allowed values are lists, and some are not",
        ),
    ],
)
def test_bad_files(tmp_path: Path, questions: list[Any], answers: list[Any], said: str) -> None:
    q, a = write(tmp_path / "q.jsonl", *questions), write(tmp_path / "a.jsonl", *answers)
    with pytest.raises(UserError) as error:
        read_bfcl(q, a)
    assert said.format(q=q) in str(error.value)
    assert len(error.value.problems) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    there = write(tmp_path / "q.jsonl", question())
    with pytest.raises(UserError, match=r"none\.jsonl: the file can't be read \(No such file"):
        read_bfcl(there, tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"q\.bin: of no known type"):
        read_bfcl(there.rename(tmp_path / "q.bin"), there)
