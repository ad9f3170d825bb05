"""What is JSON, what satisfies a schema, and which schemas are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.config.reward import JsonSchemaReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.json_schema import prepare

SCHEMA = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0},
        "name": {"$ref": "#/$defs/word"},
        "step": {"multipleOf": 0.1},
    },
    "required": ["age"],
    "additionalProperties": False,
    "$defs": {"word": {"type": "string", "pattern": "^[a-z]+$"}},
}


def score(said: str, schema: Any = SCHEMA, stopped: bool = True) -> Any:
    task = Task("rows.jsonl:1", row={"schema": schema})
    return prepare(JsonSchemaReward())([Completion(said, stopped=stopped)], [task])[0]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ('{"age": 3}', 1.0),
        ('\n {"age": 3, "name": "ada"} ', 1.0),
        ('```json\n{"age": 3}\n```', 1.0),
        ('```\n{\n"age": 3\n}\n```\n', 1.0),
        ('{"age": 3.0}', 1.0),  # JSON Schema counts it as an integer
        ('{"age": -3}', 0.2),
        ('{"age": "3"}', 0.2),
        ('{"age": true}', 0.2),
        ('{"name": "ada"}', 0.2),
        ('{"age": 3, "name": "Ada"}', 0.2),
        ('{"age": 3, "more": 1}', 0.2),
        ("[]", 0.2),
        ("12", 0.2),
        ("null", 0.2),
        ('{"age": 3', 0.0),
        ("{'age': 3}", 0.0),
        ('{"age": 3,}', 0.0),
        ('Here: {"age": 3}', 0.0),
        ('{"age": 3} {"age": 4}', 0.0),
        ('```json\n{"age": 3}', 0.0),
        ('{"age": NaN}', 0.0),
        ('{"age": Infinity}', 0.0),
        ("", 0.0),
        ("\0", 0.0),
        ("\ud800", 0.0),
        ('{"age": 3, "name": "\\ud800"}', 0.2),
        ('{"age": 3, "step": 1e999}', 0.2),
        ('{"age": ' + "9" * 5000 + "}", 0.0),  # more digits than Python reads
        ("[" * 100_000, 0.0),
        ("[" * 100_000 + "]" * 100_000, 0.0),
        ("```" * 50_000, 0.0),
        ("```\n" + "\n " * 100_000, 0.0),
    ],
)
def test_score(said: str, wanted: float) -> None:
    assert score(said) == wanted
    assert score(said, json.dumps(SCHEMA)) == wanted


def test_what_was_cut_off_is_none() -> None:
    assert score('{"age": 3}', stopped=False) == 0.0


def test_schema_of_the_file_goes_before_the_row(folder: Path) -> None:
    (folder / "schema.json").write_text('{"type": "array"}', encoding="utf-8")
    reward = prepare(JsonSchemaReward(schema_file="schema.json"))
    tasks = [Task("rows.jsonl:1"), Task("rows.jsonl:2", row={"schema": SCHEMA})]
    assert reward([Completion("[1]"), Completion('{"age": 3}')], tasks) == [1.0, 0.2]


def test_draft_of_the_schema_counts() -> None:
    exclusive = {"minimum": 3, "exclusiveMinimum": True}
    assert score("3", exclusive | {"$schema": "http://json-schema.org/draft-04/schema#"}) == 0.2
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: schema: exclusiveMinimum: "):
        score("3", exclusive)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, r"type: 'objekt' is not valid"),
        ({"properties": {"a": {"minimum": "3"}}}, "properties/a/minimum: "),
        ({"$ref": "#/$defs/none"}, r"\$ref .* points to nothing in"),
        ({"$ref": "https://example.com/schema.json"}, r"points to nothing in"),
        ({"$id": "https://example.com/a", "$ref": "https://example.com/b"}, r"points to nothing in"),
        ([1], "it is not a mapping but list"),
        ("{", "it is not JSON"),
        ('{"type": "object", "type": "array"}', "two values under the name 'type'"),
        (None, "the row has no schema"),
    ],
)
def test_what_is_no_schema_is_named(schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*{message}"):
        score('{"age": 3}', schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "it is not JSON"), ('{"type": 3}', "type: "), (None, r"can't be read .* name a JSON file")],
)
def test_file_that_holds_no_schema_is_named(folder: Path, text: str | None, message: str) -> None:
    if text is not None:
        (folder / "schema.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"reward\.json_schema\.schema_file=schema\.json: .*{message}"):
        prepare(JsonSchemaReward(schema_file="schema.json"))


def test_names_and_data_called_ref_are_no_references() -> None:
    schema = {"properties": {"$ref": {"type": "string"}}, "enum": [{"$ref": "#/none"}]}
    assert score('{"$ref": "#/none"}', schema) == 1.0


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(UserError, match=r"pip install 'gemma_tune\[rl\]'"):
        prepare(JsonSchemaReward())
