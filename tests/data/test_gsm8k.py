"""GSM8K's training split through `data=columns`, against counts made with the tokenizer alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.data.tokenized import KEPT, TokenizedRows
from gemma_tune.run.paths import ASSETS

FILE = Path(os.environ.get("GEMMA_TUNE_TEST_DATA") or "unset", "gsm8k", "train.jsonl")
MAX_LENGTH = 512

pytestmark = pytest.mark.skipif(
    not FILE.is_file(), reason="set GEMMA_TUNE_TEST_DATA to the folder that holds gsm8k/train.jsonl"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "tiny")


@pytest.fixture(scope="module", params=[1000, pytest.param(7473, marks=pytest.mark.slow)], ids=["begin", "whole"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows, or all."""
    lines = FILE.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 7473
    path = tmp_path_factory.mktemp("gsm8k") / "train.jsonl"
    path.write_text("".join(lines[: request.param]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def rows(tokenizer: Any, file: Path) -> TokenizedRows:
    data = DataConfig(format="columns", train_file=str(file), prompt_column="question", completion_column="answer")
    train, held_out = load_rows(data, tokenizer, MAX_LENGTH, seed=0)
    assert held_out.read == 0
    return train


@pytest.fixture(scope="module")
def lengths(tokenizer: Any, file: Path) -> list[tuple[int, int]]:
    """Tokens of prompt and answer (the stop token with it), encoded apart, of every line."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    prompts = [
        f"<bos><start_of_turn>user\n{line['question'].strip()}<end_of_turn>\n<start_of_turn>model\n" for line in lines
    ]
    answers = [f"{line['answer'].strip()}<end_of_turn>" for line in lines]
    ids = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (prompts, answers))
    return [(len(p), len(a)) for p, a in zip(*ids, strict=True)]


def test_counts_equal_those_made_by_hand(rows: TokenizedRows, lengths: list[tuple[int, int]]) -> None:
    used = [(p, a) for p, a in lengths if p < MAX_LENGTH]
    newline = 1  # after the stop token: a token of the row that isn't trained
    assert rows.counts() == {
        "longest_row": min(MAX_LENGTH, max(p + a + newline for p, a in lengths)),
        "rows_read": len(lengths),
        "rows": len(used),
        "rows_cut": sum(p + a + newline > MAX_LENGTH for p, a in lengths),
        "rows_dropped": len(lengths) - len(used),
        "rows_skipped": 0,
        "rows_repeated": 0,
        "rows_leaked": 0,
        "tokens": sum(min(p + a + newline, MAX_LENGTH) for p, a in used),
        "trained_tokens": sum(min(p + a, MAX_LENGTH) - p for p, a in used),
    }
    assert 0 < rows.cut < len(lengths)  # the length was chosen so that some are


def test_every_row_trains_its_answer(file: Path, rows: TokenizedRows, lengths: list[tuple[int, int]]) -> None:
    used = [(n, p, a) for n, (p, a) in enumerate(lengths, start=1) if p < MAX_LENGTH]
    assert [r.where for r in rows.records] == [f"{file}:{n}" for n, _, _ in used][:KEPT]
    for row, (_, prompt, answer) in zip(rows.rendered, used, strict=True):
        end = min(prompt + answer, MAX_LENGTH)
        untrained = [-100] * (len(row.input_ids) - end)
        assert row.labels == [-100] * prompt + row.input_ids[prompt:end] + untrained


def test_dropped_rows_are_listed(file: Path, rows: TokenizedRows, lengths: list[tuple[int, int]]) -> None:
    assert rows.dropped == [f"{file}:{n}" for n, (p, _) in enumerate(lengths, start=1) if p >= MAX_LENGTH]
