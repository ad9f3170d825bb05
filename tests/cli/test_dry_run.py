"""`dry_run=true` refuses what the run itself would refuse before its first weight, and knows a run's stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gemma_tune
from gemma_tune.errors import UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.optim=paged_adamw_8bit"], "pages between GPU and host memory"),
        (["model.device=cuda"], "no GPU that torch can use"),
        (["train.resume_from_checkpoint=latest"], "checkpoint"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="these are mistakes on a CPU")
def test_what_the_run_would_refuse(words: list[str], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        gemma_tune.run("qlora_sft", [*words, "dry_run=true"])
    assert not list(folder.iterdir())


def test_what_is_not_used_of_rows_that_are_only_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = '{"prompt": "Hi", "completion": "Hello.", "source": "me"}\n'
    for name in ("held_out.jsonl", "test.jsonl"):
        (folder / name).write_text(row, encoding="utf-8")
    words = ["data=auto", "data.validation_file=held_out.jsonl", "data.test_files.mine=test.jsonl", "dry_run=true"]
    gemma_tune.run("evaluate", ["model=tiny", *words])
    said = capsys.readouterr().out
    assert f"held-out rows: not used of {folder}/held_out.jsonl: source: 1 row" in said
    assert "test rows: not used of data.test_files.mine: source: 1 row" in said


def memory(recipe: str, *words: str) -> float:
    """GiB that a dry run estimates."""
    result = gemma_tune.run(recipe, [*words, "dry_run=true", "data.max_train_samples=20"])
    return float(result.metrics["memory_gib"]["total"])


def test_the_stage_that_needs_most_is_estimated(folder: Path) -> None:
    """The first training is of every weight, the second of an adapter: which needs more is a matter of its batches."""
    words = ["adapter=none", "quant.stage2.peft_type=lora"]
    first = memory("full_sft")
    assert memory("tune_to_int4", *words, "quant.stage2.per_device_train_batch_size=1") == pytest.approx(first)
    assert memory("tune_to_int4", *words, "quant.stage2.per_device_train_batch_size=16") > 1.2 * first
