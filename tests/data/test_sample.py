"""The sample task: as its script writes it, nothing of a test in training, every call what its tool declares."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gemma_tune.paths import ASSETS

SAMPLE = ASSETS / "sample"
SPLITS = ("train", "validation", "test", "test_new_phrasings")
TYPES = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def request_of(row: dict[str, Any]) -> str:
    """The request in the plainest form: words and numbers, in small letters."""
    return " ".join(re.findall(r"[\w.:]*\w", row["messages"][0]["content"].lower()))


def call_of(row: dict[str, Any]) -> dict[str, Any] | None:
    calls = row["messages"][1].get("tool_calls")
    return calls[0]["function"] if calls else None


def pattern_of(row: dict[str, Any]) -> tuple[str, str] | None:
    """A request without its values (what is left is its phrasing), and the first of them."""
    call = call_of(row)
    if call is None:
        return None
    request, values = row["messages"][0]["content"], call["arguments"]
    for name, value in values.items():
        if not isinstance(value, bool):
            request = request.replace(str(value), f"<{name}>", 1)
    return request, str(next(iter(values.values())))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sample", ASSETS / "make_sample.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_sample"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_these_files(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_sample.py", "--out", str(tmp_path)])
    script.main()
    for file in sorted(tmp_path.iterdir()):
        assert file.read_bytes() == (SAMPLE / file.name).read_bytes(), file.name
    assert {f.name for f in SAMPLE.iterdir()} == {f.name for f in tmp_path.iterdir()}


def test_sizes() -> None:
    found = {split: rows(split) for split in SPLITS}
    assert len(found["test"]) >= 200
    tools = {call["name"] for row in found["train"] if (call := call_of(row))}
    assert len(tools) >= 8
    for split, held in found.items():
        refused = sum(call_of(row) is None for row in held)
        most = 0.07 if split.startswith("test") else 0.21  # a model that never calls must not come out above 10 %
        assert 0.05 < refused / len(held) < most, split
        called = {call["name"] for row in held if (call := call_of(row))}
        assert called == tools, split


def test_no_row_twice() -> None:
    """Neither in one file nor in two, whatever its letters and punctuation: no test row is in training."""
    counts = Counter(request_of(r) for split in SPLITS for r in rows(split))
    assert [request for request, n in counts.items() if n > 1] == []


def test_combinations_are_new() -> None:
    """No phrasing stands in the test with a first value that training has in the same phrasing."""
    trained = {pattern_of(r) for r in rows("train") + rows("validation")} - {None}
    held = [pattern_of(r) for r in rows("test")]
    assert not trained & set(held) - {None}
    phrasings = {p[0] for p in trained if p}
    assert sum(p is not None and p[0] in phrasings for p in held) > 150  # the phrasings themselves are known


def test_phrasings_are_new() -> None:
    trained = {p[0] for r in rows("train") + rows("validation") if (p := pattern_of(r))}
    held = {p[0] for r in rows("test_new_phrasings") if (p := pattern_of(r))}
    assert len(held) >= 15
    assert not trained & held


@pytest.mark.parametrize("split", SPLITS)
def test_calls_fit_their_tools(split: str) -> None:
    for row in rows(split):
        declared = {t["function"]["name"]: t["function"]["parameters"] for t in row["tools"]}
        call = call_of(row)
        if call is None:
            continue
        parameters = declared[call["name"]]
        assert set(parameters["required"]) == set(call["arguments"])
        for name, value in call["arguments"].items():
            kind = parameters["properties"][name]["type"]
            assert isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)), (name, value)
            said = row["messages"][0]["content"]
            assert isinstance(value, bool) or str(value) in said, "an argument that isn't in the request"
