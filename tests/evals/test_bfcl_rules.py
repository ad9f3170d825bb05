"""The rules of the Berkeley Function-Calling Leaderboard, on its simple Python rows and on what is made from them.

What each case of a single argument is called was compared with the leaderboard's own checker (bfcl-eval 2026.3.23).
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.chat.calls import Call
from gemma_tune.data.tools import checked_tools
from gemma_tune.evals.bfcl import BfclRow, check_answer, read_bfcl
from gemma_tune.evals.bfcl_rules import TYPES, Allowed, check_call, check_calls, stands_for_variable

FOLDER = Path(os.environ.get("GEMMA_TUNE_TEST_DATA") or "unset", "bfcl")
QUESTIONS, ANSWERS = FOLDER / "simple_python.jsonl", FOLDER / "simple_python_answers.jsonl"

real = pytest.mark.skipif(
    not (QUESTIONS.is_file() and ANSWERS.is_file()), reason="set GEMMA_TUNE_TEST_DATA to the folder that holds bfcl/"
)


@pytest.fixture(scope="module")
def rows() -> list[BfclRow]:
    return read_bfcl(QUESTIONS, ANSWERS)


@pytest.fixture(scope="module")
def lines() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of both files."""
    questions, answers = (
        [json.loads(x) for x in f.read_text(encoding="utf-8").splitlines()] for f in (QUESTIONS, ANSWERS)
    )
    return questions, answers


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def properties(row: BfclRow) -> dict[str, Any]:
    found: dict[str, Any] = row.functions[0]["parameters"]["properties"]
    return found


def types(schema: Any) -> Iterator[str]:
    """The types in a JSON schema, at any depth; an argument may be called `type`, and then it is a mapping."""
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str):
            yield schema["type"]
        for value in schema.values():
            yield from types(value)


@real
def test_gold_is_right(rows: list[BfclRow]) -> None:
    """As few arguments as may be, all of them, and in another order."""
    assert len(rows) == 400
    for row in rows:
        for optional in (False, True):
            (call,) = row.gold(optional)
            backwards = Call(call.name, dict(reversed(call.arguments.items())))
            assert check_answer([call], row).right and check_answer([backwards], row).right, row.where
    assert sum(row.gold(True) != row.gold() for row in rows) > 100


@real
def test_prompts(rows: list[BfclRow]) -> None:
    """The tools have JSON Schema's types and are otherwise the functions; the record's answer is the gold call."""
    for row in rows:
        assert checked_tools(row.tools, row.where) == row.tools
        assert row.category == "simple_python" and [m["role"] for m in row.messages] == ["user"]
        assert row.record.prompt == row.messages and row.record.tools == row.tools
        called = row.record.messages[-1]["tool_calls"][0]["function"]  # type: ignore[index]
        assert [Call(called["name"], called["arguments"])] == row.gold()
        (tool,), (function,) = row.tools, row.functions
        assert set(types(tool)) <= {"function", "string", "integer", "number", "boolean", "array", "object"}
        assert function["parameters"]["type"] == "dict"  # as the file has it
        assert tool["function"]["name"] == function["name"]
        assert tool["function"]["parameters"]["required"] == function["parameters"]["required"]
        assert tool["function"]["parameters"]["properties"].keys() == properties(row).keys()


@real
def test_wrong_answers(rows: list[BfclRow]) -> None:
    """Each kind of mistake, on every row that can have it."""
    seen: dict[str, int] = {}

    def wrong(kind: str, row: BfclRow, *made: Call) -> None:
        verdict = check_answer(made, row)
        assert (verdict.right, verdict.kind) == (False, kind), (row.where, made, verdict)
        assert verdict.message
        seen[kind] = seen.get(kind, 0) + 1

    for row in rows:
        (call,) = row.gold()
        ((_, allowed),) = row.ground_truth
        wrong("wrong_count", row)
        wrong("wrong_count", row, call, call)
        wrong("wrong_func_name", row, Call(f"{call.name}s", call.arguments))
        if "." in call.name:
            wrong("wrong_func_name", row, Call(call.name.replace(".", "_"), call.arguments))
        wrong("unexpected_param", row, Call(call.name, {**call.arguments, "unheard_of": 1}))
        required = row.functions[0]["parameters"]["required"]
        for name, value in call.arguments.items():
            without = {k: v for k, v in call.arguments.items() if k != name}
            wrong("missing_required" if name in required else "missing_optional", row, Call(call.name, without))
            wrong("type_error:simple", row, Call(call.name, {**call.arguments, name: None}))
            schema, other = properties(row)[name], Call(call.name, {**call.arguments, name: changed(value)})
            if stands_for_variable(schema, allowed[name]):
                wrong("value_error:others", row, other)
            elif isinstance(value, str):
                wrong("value_error:string", row, other)
                wrong("type_error:simple", row, Call(call.name, {**call.arguments, name: [value]}))
            elif isinstance(value, bool):
                assert check_answer([other], row).right == (changed(value) in allowed[name])
                wrong("type_error:simple", row, Call(call.name, {**call.arguments, name: int(value)}))
            elif isinstance(value, int | float):
                wrong("value_error:others", row, other)
                wrong("type_error:simple", row, Call(call.name, {**call.arguments, name: str(value)}))
            elif isinstance(value, dict):
                wrong("value_error:dict_key", row, other)
    assert all(seen[kind] > 20 for kind in seen if kind != "value_error:dict_key"), seen
    assert seen["value_error:dict_key"] > 2 and len(seen) == 9, seen


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 98765
    if isinstance(value, str):
        return f"not {value}"
    return {**value, "unheard_of": 1} if isinstance(value, dict) else [*value, *value]


@real
def test_every_alternative_is_right(rows: list[BfclRow]) -> None:
    """Any of the allowed values, and texts with other case, spaces and dots."""
    others = 0
    for row in rows:
        (call,) = row.gold(optional=True)
        ((_, allowed),) = row.ground_truth
        for name, options in allowed.items():
            schema = properties(row)[name]
            if TYPES[schema["type"]] is dict or "dict" in types(schema):
                continue
            for option in options:
                if option == "" or name not in call.arguments:
                    continue
                others += option != call.arguments[name]
                assert check_answer([Call(call.name, {**call.arguments, name: option})], row).right, (row.where, option)
                if isinstance(option, str) and not stands_for_variable(schema, options):
                    loud = option.upper().replace(" ", " - ") + "."
                    assert check_answer([Call(call.name, {**call.arguments, name: loud})], row).right, (row.where, loud)
    assert others > 100


@real
def test_multiple(tmp_path: Path, lines: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """Among several functions the wanted one is checked, wherever it stands; another one's call is wrong."""
    questions, answers, pick = *lines, random.Random(0)
    asked, known = [], []
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        name = question["function"][0]["name"]
        others = [q["function"][0] for q in pick.sample(questions, 4) if q["function"][0]["name"] != name]
        functions = [*question["function"], *others]
        pick.shuffle(functions)
        asked.append({**question, "id": f"multiple_{i}", "function": functions})
        known.append({**answer, "id": f"multiple_{i}"})
    rows = read_bfcl(write(tmp_path / "q.jsonl", asked), write(tmp_path / "a.jsonl", known))
    for row in rows:
        (call,) = row.gold()
        other = next(f["name"] for f in row.functions if f["name"] != call.name)
        assert check_answer([call], row).right
        assert check_answer([Call(other, call.arguments)], row).kind == "wrong_func_name"
        assert check_answer([call, call], row).kind == "wrong_count"


@real
def test_parallel(tmp_path: Path, lines: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """Several calls, of one function and of several, are right in any order and with none twice."""
    questions, answers, pick = *lines, random.Random(0)
    asked, known = [], []
    for i in range(200):
        chosen = pick.sample(range(len(questions)), pick.randint(2, 5))
        by_name = {questions[j]["function"][0]["name"]: j for j in chosen}  # a name twice means two functions here
        several = list(by_name.values())
        name = f"parallel_multiple_{i}" if len(several) > 1 else f"parallel_{i}"
        functions = [questions[j]["function"][0] for j in several]
        asked.append({"id": name, "question": questions[several[0]]["question"], "function": functions})
        known.append({"id": name, "ground_truth": [answers[j]["ground_truth"][0] for j in several]})
    rows = read_bfcl(write(tmp_path / "q.jsonl", asked), write(tmp_path / "a.jsonl", known))
    for row in rows:
        calls = row.gold(optional=pick.random() < 0.5)
        pick.shuffle(calls)
        assert check_answer(calls, row).right
        assert check_answer(calls[1:], row).kind == "wrong_count"
        assert check_answer([*calls, calls[0]], row).kind == "wrong_count"
        twice = check_answer([*calls[1:], calls[-1]], row)
        assert twice.kind == "cannot_find_match"
        spoilt = check_answer([Call(calls[0].name, {**calls[0].arguments, "unheard_of": 1}), *calls[1:]], row)
        assert spoilt.kind == "cannot_find_match" and "unheard_of" in spoilt.message


def one(schema: dict[str, Any], options: list[Any]) -> tuple[dict[str, Any], Allowed]:
    """A function of the one argument `a`, which is not required, and its ground truth."""
    return {"name": "f", "parameters": {"type": "dict", "properties": {"a": schema}, "required": []}}, {"a": options}


def array(items: str, kind: str = "array") -> dict[str, Any]:
    return {"type": kind, "items": {"type": items}}


def simple(kind: str) -> dict[str, Any]:
    return {"type": kind}


@pytest.mark.parametrize(
    ("schema", "options", "value", "kind"),
    [
        # numbers: an integer does for a float, and nothing else for anything else
        (simple("float"), [5.0], 5, ""),
        (simple("float"), [5], 5.0, ""),
        (simple("float"), [5.0], True, "type_error:simple"),
        (simple("float"), [5.0], 10**400, "type_error:simple"),  # the leaderboard's checker stops here
        (simple("integer"), [5], 5.0, "type_error:simple"),
        (simple("integer"), [1], True, "type_error:simple"),
        (simple("boolean"), [True], 1, "type_error:simple"),
        (simple("boolean"), [True], "true", "type_error:simple"),
        (simple("integer"), [5, 6], 6, ""),
        (simple("integer"), [5, 6], 7, "value_error:others"),
        (simple("integer"), [5, ""], "", "type_error:simple"),
        # texts
        (simple("string"), ["New York, NY"], "new york ny", ""),
        (simple("string"), ["x^2 * 3/4"], "X2*34", ""),
        (simple("string"), ["a_b-c.d"], "abcd", ""),
        (simple("string"), ["it's"], 'it"s', ""),
        (simple("string"), ["New York", "NYC"], "nyc", ""),
        (simple("string"), ["New York"], "New York!", "value_error:string"),
        (simple("string"), ["New York"], "New\tYork", "value_error:string"),
        (simple("string"), ["5"], 5, "type_error:simple"),
        (simple("string"), ["here", ""], "", ""),
        (simple("string"), ["here"], "", "value_error:string"),
        (simple("any"), ["my_data"], "My data", ""),
        (simple("any"), ["my_data"], 5, "type_error:simple"),
        # lists
        (array("string"), [["a b", "C"]], ["A.B", "c"], ""),
        (array("string"), [["a", "c"]], ["c", "a"], "value_error:list/tuple"),
        (array("string"), [["a"], ["b"]], ["b"], ""),
        (array("string"), [["a"]], "a", "type_error:simple"),
        (array("string"), [["a"]], [1], "type_error:nested"),
        (array("string"), [["a"], ""], [1], "value_error:list/tuple"),  # elements of what may be left out
        (array("string"), [["a"], ""], [], ""),
        (array("string"), [["a"]], [], "value_error:list/tuple"),
        (array("string"), [[]], [], ""),
        (array("string"), [], [], "type_error:simple"),
        (array("float"), [[1.0, 3.0]], [1, 3], "type_error:nested"),
        (array("float"), [[1, 3]], [1, 3], ""),  # the ground truth's type does as well
        (array("float"), [[1, 3]], [1.0, 3.0], ""),
        (array("integer"), [[1]], [True], "type_error:nested"),
        (array("float", "tuple"), [[1.5, 2.5]], [1.5, 2.5], ""),
        (array("float", "tuple"), [[1.5, 2.5]], [1.5], "value_error:list/tuple"),
        (array("array"), [[["A"]]], [["A"]], ""),
        (array("array"), [[["A"]]], [["a"]], "value_error:list/tuple"),  # texts that deep are compared as they are
        (array("array"), [[[1, 2]]], [1, 2], "type_error:nested"),
        # mappings
        (simple("dict"), [{"k": ["A b"], "l": [1, 2]}], {"l": 2, "k": "ab"}, ""),
        (simple("dict"), [{"k": ["a"], "l": [1, ""]}], {"k": "a"}, ""),
        (simple("dict"), [{"k": ["a"], "l": [1]}], {"k": "a"}, "value_error:dict_key"),
        (simple("dict"), [{"k": ["a"]}], {"k": "a", "l": 1}, "value_error:dict_key"),
        (simple("dict"), [{"k": ["a"]}], {"k": "b"}, "value_error:dict_value"),
        (simple("dict"), [{"k": ["a"], "l": [1]}], {"k": "b"}, "value_error:dict_key"),
        (simple("dict"), [{"k": ["a"]}, {"l": [1]}], {"l": 1}, ""),
        (simple("dict"), [{"k": [["A"]]}], {"k": ["a"]}, "value_error:dict_value"),
        (simple("dict"), [{"k": ["a"]}], [], "type_error:simple"),
        (simple("dict"), [""], {}, "unclear"),
        # lists of mappings
        (array("dict"), [[{"k": ["a", "b"]}, {"k": ["c"]}]], [{"k": "B"}, {"k": "c"}], ""),
        (array("dict"), [[{"k": ["a"]}, {"k": ["c"]}]], [{"k": "c"}, {"k": "a"}], "value_error:dict_value"),
        (array("dict"), [[{"k": ["a"]}]], [], "value_error:list_dict_count"),
        (array("dict"), [[{"k": ["a"]}], [{"k": ["c"]}]], [{"k": "c"}], ""),
        (array("dict"), [[{"k": ["a"]}]], ["a"], "type_error:nested"),
        (array("dict"), [[{"k": ["a"]}], ""], [], ""),
        (array("dict"), ["", [{"k": ["a"]}]], ["a"], "type_error:nested"),  # it stops here, too
        # a first value of another type stands for a variable
        (array("integer"), ["my_list"], "my_list", ""),
        (array("integer"), ["my_list"], "My_list", "value_error:others"),
        (array("integer"), ["my_list"], [1], "value_error:others"),
        (array("integer"), ["my_list"], 1, "type_error:simple"),
        (simple("string"), ["", True], True, ""),
        (simple("string"), ["", True], "yes", "value_error:others"),
        (simple("float"), [5.0, "x"], "x", "type_error:simple"),  # only the first counts
    ],
)  # fmt: skip
def test_one_argument(schema: dict[str, Any], options: list[Any], value: Any, kind: str) -> None:
    function, allowed = one(schema, options)
    before = json.dumps(value)
    verdict = check_call(Call("f", {"a": value}), function, allowed)
    assert (verdict.right, verdict.kind) == (not kind, kind), verdict
    assert bool(verdict.message) == bool(kind)
    assert json.dumps(value) == before


def test_arguments_left_out() -> None:
    function, allowed = one(simple("integer"), [1, ""])
    assert check_call(Call("f", {}), function, allowed).right
    assert check_call(Call("f", {}), function, {"a": [1]}).kind == "missing_optional"
    function["parameters"]["required"] = ["a"]
    assert check_call(Call("f", {}), function, allowed).kind == "missing_required"
    # given, and in the function, but not wanted
    assert check_call(Call("f", {"a": 1}), function, {}).kind == "unexpected_param"
    # wanted by a ground truth that is at odds with its function
    assert check_call(Call("f", {"a": 1, "b": 2}), function, {"a": [1], "b": [2]}).kind == "unexpected_param"


def test_a_wanted_call_takes_the_first_that_is_right() -> None:
    """As the leaderboard does, although another assignment would suit both."""
    function, _ = one(simple("integer"), [])
    wide, narrow = ("f", {"a": [1, 2]}), ("f", {"a": [1]})
    made = [Call("f", {"a": 1}), Call("f", {"a": 2})]
    assert check_calls(made, [function], [narrow, wide], parallel=True).right
    assert check_calls(made, [function], [wide, narrow], parallel=True).kind == "cannot_find_match"
    assert check_calls(made[::-1], [function], [wide, narrow], parallel=True).right


def test_messages_are_short() -> None:
    function, allowed = one(simple("string"), ["x" * 5000])
    assert len(check_call(Call("f", {"a": "y" * 5000}), function, allowed).message) < 500
