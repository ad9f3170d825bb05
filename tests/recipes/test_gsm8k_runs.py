"""Real rows: GSM8K through `columns`. The loss falls, and the report counts what an independent count finds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from short_runs import losses, short_run
from transformers import AutoTokenizer

from gemma_tune.run.paths import ASSETS

FILE = Path(os.environ.get("GEMMA_TUNE_TEST_DATA") or "unset") / "gsm8k" / "train.jsonl"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="GEMMA_TUNE_TEST_DATA names no folder with gsm8k/")
ROWS, LENGTH = 100, 256


def count_by_hand() -> dict[str, int]:
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    tokens = trained = 0
    for line in FILE.read_text("utf-8").splitlines()[:ROWS]:
        row = json.loads(line)
        head = f"<bos><start_of_turn>user\n{row['question'].strip()}<end_of_turn>\n<start_of_turn>model\n"
        ids = tokenizer(f"{head}{row['answer'].strip()}<end_of_turn>\n", add_special_tokens=False)["input_ids"]
        n_head = len(tokenizer(head, add_special_tokens=False)["input_ids"])
        if n_head >= LENGTH:
            continue  # no answer token is left
        tokens += min(len(ids), LENGTH)
        trained += min(len(ids) - 1, LENGTH) - n_head
    return {"tokens": tokens, "trained_tokens": trained}


@pytest.mark.parametrize(
    "recipe", ["lora_sft", *(pytest.param(n, marks=pytest.mark.slow) for n in ("full_sft", "qlora_sft"))]
)
@pytest.mark.slow
def test_loss_falls_and_counts_agree(recipe: str, tmp_path: Path) -> None:
    words = ["data=columns", f"data.train_file={FILE}", "data.prompt_column=question", "data.completion_column=answer",
             f"data.max_train_samples={ROWS}", f"train.max_length={LENGTH}", "export=none", "eval=none",
             "train.learning_rate=2e-3", "train.save_steps=15", "eval.num_samples=0"]  # fmt: skip
    result = short_run(recipe, tmp_path / "run", *words, steps=15)
    found = losses(tmp_path / "run")
    assert sum(found[-3:]) < 0.85 * sum(found[:3])
    counts = result.metrics["data"]["training"]
    by_hand = count_by_hand()
    assert {k: counts[k] for k in by_hand} == by_hand and counts["rows_read"] == ROWS
    report = (tmp_path / "run" / "report.md").read_text("utf-8")
    assert all(f"{n:,}" in report for n in by_hand.values())
