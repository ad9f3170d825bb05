"""The sample task: as its script writes it, nothing of a test in training, every call what its tool declares."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gemma_tune.run.paths import ASSETS

SAMPLE = ASSETS / "sample"
SPLITS = ("train", "validation", "test", "test_new_phrasings")
TYPES = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def turns(split: str) -> list[dict[str, Any]]:
    """Every request with its answer and the tools, as a row of its own."""
    return [
        {"messages": row["messages"][i : i + 2], "tools": row["tools"]}
        for row in rows(split)
        for i in range(0, len(row["messages"]), 2)
    ]


def request_of(turn: dict[str, Any]) -> str:
    """The request in the plainest form: words and numbers, in small letters."""
    return " ".join(re.findall(r"[\w.:]*\w", turn["messages"][0]["content"].lower()))


def call_of(turn: dict[str, Any]) -> dict[str, Any] | None:
    calls = turn["messages"][1].get("tool_calls")
    return calls[0]["function"] if calls else None


def pattern_of(turn: dict[str, Any]) -> tuple[str, str] | None:
    """A request without its values (what is left is its phrasing), and the first of them."""
    call = call_of(turn)
    if call is None:
        return None
    request, values = turn["messages"][0]["content"], call["arguments"]
    for name, value in values.items():
        if not isinstance(value, bool):
            request = request.replace(str(value), f"<{name}>", 1)
    return request, str(next(iter(values.values())))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ASSETS)  # as when it is run
    spec = importlib.util.spec_from_file_location("make_sample", ASSETS / "make_sample.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_these_files(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_sample.py", "--out", str(tmp_path)])
    script.main()
    for file in sorted(tmp_path.iterdir()):
        assert file.read_bytes() == (SAMPLE / file.name).read_bytes(), file.name
    assert {f.name for f in SAMPLE.iterdir()} == {f.name for f in tmp_path.iterdir()}


def test_sizes() -> None:
    found = {split: turns(split) for split in SPLITS}
    assert len(rows("test")) >= 200
    tools = {call["name"] for turn in found["train"] if (call := call_of(turn))}
    assert len(tools) >= 8
    for split, held in found.items():
        refused = sum(call_of(turn) is None for turn in held)
        most = 0.07 if split.startswith("test") else 0.21  # a model that never calls must not come out above 10 %
        assert 0.05 < refused / len(held) < most, split
        called = {call["name"] for turn in held if (call := call_of(turn))}
        assert called == tools, split


def test_no_request_in_two_files() -> None:
    """Whatever its letters and punctuation: no request of a test is in training. In the tests none stands twice."""
    asked = {split: Counter(request_of(turn) for turn in turns(split)) for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not asked[one].keys() & asked[other].keys(), (one, other)
    assert all(n == 1 for split in SPLITS if split != "train" for n in asked[split].values())
    whole = Counter(json.dumps(row) for row in rows("train"))
    assert all(n == 1 for n in whole.values())


def test_turns() -> None:
    """Conversations to train on have one to four requests; the tests have one."""
    assert {len(row["messages"]) for row in rows("train")} == {2, 4, 6, 8}
    assert {len(row["messages"]) for split in SPLITS if split != "train" for row in rows(split)} == {2}


def test_combinations_are_new() -> None:
    """No phrasing stands in the test with a first value that training has in the same phrasing."""
    trained = {pattern_of(t) for t in turns("train") + turns("validation")} - {None}
    held = [pattern_of(t) for t in turns("test")]
    assert not trained & set(held) - {None}
    phrasings = {p[0] for p in trained if p}
    assert sum(p is not None and p[0] in phrasings for p in held) > 150  # the phrasings themselves are known


def test_phrasings_are_new() -> None:
    trained = {p[0] for t in turns("train") + turns("validation") if (p := pattern_of(t))}
    held = {p[0] for t in turns("test_new_phrasings") if (p := pattern_of(t))}
    assert len(held) >= 15
    assert not trained & held


@pytest.mark.parametrize("split", SPLITS)
def test_calls_fit_their_tools(split: str) -> None:
    for turn in turns(split):
        declared = {t["function"]["name"]: t["function"]["parameters"] for t in turn["tools"]}
        call = call_of(turn)
        if call is None:
            continue
        parameters = declared[call["name"]]
        assert set(parameters["required"]) == set(call["arguments"])
        for name, value in call["arguments"].items():
            kind = parameters["properties"][name]["type"]
            assert isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)), (name, value)
            said = turn["messages"][0]["content"]
            assert isinstance(value, bool) or str(value) in said, "an argument that isn't in the request"
