"""Reads questions of the Berkeley Function-Calling Leaderboard (BFCL) and checks answers to them.

A file of questions has lines `{"id", "question": [[messages]], "function": [functions]}`, a file of answers has lines
`{"id", "ground_truth": [{name: {argument: [allowed values]}}]}`. An id begins with its category. The rules
are in `bfcl_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_tune.chat.calls import Call
from gemma_tune.data.files import read_file
from gemma_tune.data.messages import checked_messages
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.tools import checked_tools
from gemma_tune.errors import UserError
from gemma_tune.evals.bfcl_rules import (
    TYPES,
    Allowed,
    Function,
    Verdict,
    check_calls,
    element_type,
    stands_for_variable,
)

# The single-turn Python categories whose ground truth is calls; v3 called the first one `simple`.
CATEGORIES = (
    "simple_python", "simple", "multiple", "parallel", "parallel_multiple",
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple",
)  # fmt: skip
# The leaderboard's types in JSON Schema. An `any` is checked as a string.
_JSON_SCHEMA = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
_TYPE_NAMES = {*_JSON_SCHEMA, "string", "integer", "boolean", "array", "object", "number", "null"}


@dataclass(frozen=True)
class BfclRow:
    """One question.

    Attributes:
        id: Its id in both files.
        category: One of `CATEGORIES`, the beginning of the id.
        where: File and line of the question.
        messages: The question.
        tools: The functions in the OpenAI format, with JSON Schema types.
        functions: The functions as in the file.
        ground_truth: The wanted calls: a name and the allowed values of each argument.
    """

    id: str
    category: str
    where: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    functions: list[Function]
    ground_truth: list[tuple[str, Allowed]]

    def gold(self, optional: bool = False) -> list[Call]:
        """Right calls, with the first allowed value of each argument.

        A handful of the leaderboard's live rows have no right answer at all; for those, these calls are wrong, too.

        Args:
            optional: Whether to include optional arguments that have an allowed value.
        """
        return [_gold(_function(self.functions, name), allowed, optional) for name, allowed in self.ground_truth]

    @property
    def record(self) -> Record:
        """The question as a record, with the gold calls as its answer."""
        functions = ({"name": c.name, "arguments": c.arguments} for c in self.gold())
        calls = [{"type": "function", "function": f} for f in functions]
        answer = {"role": "assistant", "content": "", "tool_calls": calls}
        return Record(self.where, checked_messages([*self.messages, answer], self.where), tools=self.tools)


def check_answer(made: Sequence[Call], row: BfclRow) -> Verdict:
    """The leaderboard's verdict on the calls of an answer, by the rules of the row's category."""
    return check_calls(made, row.functions, row.ground_truth, "parallel" in row.category)


def read_bfcl(questions: Path, answers: Path) -> list[BfclRow]:
    """The rows of two files, in the order of the questions.

    Args:
        questions: The leaderboard's file of a category, such as `BFCL_v4_multiple.json`; several may be in one file.
        answers: Its ground truth (`possible_answer/…`).

    Raises:
        UserError: A file can't be read, a row can't be used (file and line), or a question or an answer has no
            counterpart.
    """
    try:
        asked, known = _by_id(questions), _by_id(answers)
        for own, other, what, file in ((asked, known, "answer", answers), (known, asked, "question", questions)):
            if lacking := [i for i in own if i not in other]:
                more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
                raise BadRow(
                    f"{own[lacking[0]][0]}: {lacking[0]}{more} has no {what} in {file}; name the two files of one "
                    "category."
                )
        return [_row(name, where, row, *known[name]) for name, (where, row) in asked.items()]
    except BadRow as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{error.filename}: the file can't be read ({error.strerror or error}).") from error


def _by_id(path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """The rows of a file by id, each with its file and line."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for found in read_file(path):
        if isinstance(found, BadRow):
            raise found
        where, row = found
        name = row.get("id")
        if not isinstance(name, str):
            raise BadRow(f"{where}: there is no id (a string) as in the leaderboard's files.")
        category = name.rpartition("_")[0]
        if category not in CATEGORIES:
            raise BadRow(
                f"{where}: the category of {name!r} is not supported; supported are the single-turn Python ones: "
                f"{', '.join(CATEGORIES)}, each followed by `_` and a number."
            )
        if name in rows:
            raise BadRow(f"{where}: {name} is already in {rows[name][0]}; keep one of them.")
        rows[name] = where, row
    if not rows:
        raise BadRow(f"{path}: the file holds no rows.")
    return rows


def _row(name: str, where: str, row: dict[str, Any], answer_where: str, answer: dict[str, Any]) -> BfclRow:
    turns = row.get("question")
    if not isinstance(turns, list) or not all(isinstance(turn, list) for turn in turns) or not turns:
        raise BadRow(f"{where}: there is no question, a list of turns that are lists of messages.")
    if len(turns) > 1:
        raise BadRow(f"{where}: the question has {len(turns)} turns; only questions of a single turn are supported.")
    messages = checked_messages(turns[0], where, answered=False)
    if messages[-1]["role"] == "assistant":
        raise BadRow(f"{where}: roles must alternate user/assistant, and the question ends with the assistant.")
    functions = row.get("function")
    if not isinstance(functions, list) or not functions:
        raise BadRow(f"{where}: function is not a list of functions.")
    for function in functions:
        _check_function(function, where)
    category = name.rpartition("_")[0]
    tools = [{"type": "function", "function": _json_schema(f, where)} for f in functions]
    wanted = _wanted(answer.get("ground_truth"), functions, answer_where)
    if len(wanted) != 1 and "parallel" not in category:
        raise BadRow(f"{answer_where}: {name} has {len(wanted)} calls, and a row of {category} must have one.")
    found = BfclRow(
        id=name,
        category=category,
        where=where,
        messages=messages,
        tools=checked_tools(tools, where) or [],
        functions=functions,
        ground_truth=wanted,
    )
    _ = found.record  # raises BadRow if it isn't a valid record
    return found


def _check_function(function: Any, where: str) -> None:
    parameters = function.get("parameters") if isinstance(function, dict) else None
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if parameters is None or not isinstance(properties, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where}: a function isn't {{'name', 'parameters': {{'type', 'properties', 'required'}}}}.")
    required = parameters.get("required", [])
    if not isinstance(required, list) or not all(isinstance(r, str) for r in required):
        raise BadRow(f"{where}: {function['name']}: required is no list of names.")


def _json_schema(function: Function, where: str) -> dict[str, Any]:
    """A function with JSON Schema types; `format` marks floats, as in the leaderboard's own tools."""

    def renamed(schema: Any, name: str) -> dict[str, Any]:
        kind = schema.get("type") if isinstance(schema, dict) else None
        if not isinstance(kind, str) or kind not in _TYPE_NAMES:
            raise BadRow(
                f"{where}: {function['name']}: the type of {name} is {kind!r}, not one of "
                f"{', '.join(sorted(_TYPE_NAMES))}."
            )
        new: dict[str, Any] = {**schema, "type": _JSON_SCHEMA.get(kind, kind)}
        if kind == "float":
            new["format"] = "float"
        if isinstance(schema.get("properties"), dict):
            new["properties"] = {k: renamed(v, k) for k, v in schema["properties"].items()}
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                new[key] = renamed(schema[key], f"{name}'s {key}")
        return new

    return {**function, "parameters": renamed(function["parameters"], "parameters")}


def _function(functions: Sequence[Function], name: str) -> Function:
    return next(f for f in functions if f["name"] == name)


def _wanted(truth: Any, functions: Sequence[Function], where: str) -> list[tuple[str, Allowed]]:
    """The ground truth, checked so that every answer can be compared with it."""
    if not isinstance(truth, list) or not truth or not all(isinstance(c, dict) and len(c) == 1 for c in truth):
        raise BadRow(f"{where}: ground_truth is not a list of calls, each {{name: {{argument: [allowed values]}}}}.")
    calls = [(name, allowed) for call in truth for name, allowed in call.items()]
    for name, allowed in calls:
        if name not in (f["name"] for f in functions):
            raise BadRow(f"{where}: {name} is none of the question's functions.")
        if not isinstance(allowed, dict):
            raise BadRow(f"{where}: {name}: this is not a mapping of arguments to allowed values.")
        # A few rows of the leaderboard list arguments that the function lacks; no call with one is right
        properties = _function(functions, name)["parameters"]["properties"]
        for argument, options in allowed.items():
            if not isinstance(options, list):
                raise BadRow(f"{where}: {name}: the allowed values of {argument} are not a list.")
            if argument in properties:
                _check_options(properties[argument], options, f"{where}: {name}: {argument}")
    return calls


def _check_options(schema: Any, options: Sequence[Any], what: str) -> None:
    kind = schema["type"]
    items = schema.get("items")
    for checked in (
        kind,
        *([items.get("type") if isinstance(items, dict) else None] if TYPES.get(kind) is list else []),
    ):
        if checked not in TYPES:
            raise BadRow(f"{what} is checked by its type, and {checked!r} is none of {', '.join(TYPES)}.")
    if stands_for_variable(schema, options):
        return
    given = [o for o in options if o != ""]
    if TYPES[kind] is list and not all(isinstance(o, list) for o in given):
        raise BadRow(f"{what}: some allowed values are lists, and some are not.")
    entries: list[Any] = given if kind == "dict" else []
    if element_type(schema) is dict:
        entries = [e for o in given for e in o]
    if not all(isinstance(e, dict) and all(isinstance(v, list) for v in e.values()) for e in entries):
        raise BadRow(f"{what}: an allowed mapping is not {{key: [allowed values]}}.")


def _gold(function: Function, allowed: Allowed, optional: bool) -> Call:
    parameters = function["parameters"]
    arguments: dict[str, Any] = {}
    for name, options in allowed.items():
        required = name in parameters.get("required", ())
        values = [o for o in options if o != ""] or (list(options) if required else [])
        left_out = "" in options and not optional and not required
        if values and name in parameters["properties"] and not left_out:
            arguments[name] = _value(values[0], parameters["properties"][name], optional)
    return Call(function["name"], arguments)


def _value(option: Any, schema: Mapping[str, Any], optional: bool) -> Any:
    """An allowed value as in a call: an allowed mapping has a list of allowed values for each key."""

    def mapping(entry: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        given = {k: [v for v in values if v != ""] for k, values in entry.items() if optional or "" not in values}
        return {k: values[0] for k, values in given.items() if values}

    if schema["type"] == "dict" and isinstance(option, dict):
        return mapping(option)
    if element_type(schema) is dict and isinstance(option, list):
        return [mapping(e) for e in option]
    return option
