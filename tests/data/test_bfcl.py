"""BFCL's simple Python calls, as conversations with tools."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from row_files import write
from transformers import AutoTokenizer

from gemma_tune.chat import render_prompt
from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.run.paths import ASSETS

FOLDER = Path(os.environ.get("GEMMA_TUNE_TEST_DATA") or "unset", "bfcl")
FILES = [FOLDER / "simple_python.jsonl", FOLDER / "simple_python_answers.jsonl"]

pytestmark = pytest.mark.skipif(
    not all(f.is_file() for f in FILES), reason="set GEMMA_TUNE_TEST_DATA to the folder that holds bfcl/"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "tiny")


def as_row(question: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The question, its tools and, of each argument, the first answer that is right."""
    assert question["id"] == answer["id"]
    ((name, options),) = answer["ground_truth"][0].items()
    arguments = {k: values[0] for k, values in options.items() if values[0] != ""}
    call = {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {
        "messages": [*question["question"][0], {"role": "assistant", "content": None, "tool_calls": [call]}],
        "tools": [{"type": "function", "function": f} for f in question["function"]],
    }


@pytest.fixture(scope="module")
def wanted() -> list[dict[str, Any]]:
    questions, answers = ([json.loads(x) for x in f.read_text(encoding="utf-8").splitlines()] for f in FILES)
    return [as_row(q, a) for q, a in zip(questions, answers, strict=True)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, wanted: list[dict[str, Any]]) -> TokenizedRows:
    file = write(tmp_path_factory.mktemp("bfcl") / "rows.jsonl", *wanted)
    return load_rows(DataConfig(train_file=file), tokenizer, 1_000_000, seed=0)[0]


def test_every_row_is_used_whole(rows: TokenizedRows, wanted: list[dict[str, Any]]) -> None:
    assert (rows.read, len(rows.rendered), rows.cut, rows.dropped) == (400, 400, 0, [])
    assert [r.tools for r in rows.records] == [w["tools"] for w in wanted]


def test_every_function_stands_in_the_prompt(rows: TokenizedRows, tokenizer: Any) -> None:
    for record in rows.records:
        prompt = tokenizer.decode(render_prompt(tokenizer, record.prompt, record.tools))
        for tool in record.tools or []:
            assert json.dumps(tool["function"]["name"]) in prompt
            assert json.dumps(tool, ensure_ascii=False) in prompt


def test_what_is_trained_is_the_call(rows: TokenizedRows, tokenizer: Any, wanted: list[dict[str, Any]]) -> None:
    for rendered, row in zip(rows.rendered, wanted, strict=True):
        trained = tokenizer.decode([label for label in rendered.labels if label != -100])
        call = row["messages"][-1]["tool_calls"][0]["function"]
        read = json.loads(trained.removesuffix("<end_of_turn>"))
        assert read == {"name": call["name"], "parameters": json.loads(call["arguments"])}
