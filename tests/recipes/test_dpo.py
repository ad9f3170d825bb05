"""`recipe=dpo` on the embedded model: every weight, adapters, 4 bit; what it leaves; resumed to the last digit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from every_recipe import slow_marked, write_rows
from safetensors.torch import load_file
from short_runs import losses, metrics, short_run

import gemma_tune
from gemma_tune.errors import UserError

MODES = {
    "full": [],
    "lora": ["adapter=lora"],
    "qlora": ["adapter=lora", "model.load_in_4bit=true"],
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Short pairs of which the longer answer is the better one, as words of the command line."""
    return write_rows("pairs", tmp_path_factory.mktemp("pairs"))


def dpo(folder: Path, pairs: list[str], *words: str, steps: int = 3) -> gemma_tune.RunResult:
    return short_run(
        "dpo", folder, "eval.evaluators=[preference]", "train.max_grad_norm=0", *pairs, *words, steps=steps
    )


@pytest.fixture(params=slow_marked(MODES, "dpo, "))
def run(request: pytest.FixtureRequest, finished: Any) -> Any:
    return (request.param, *finished(f"dpo, {request.param}"))


def test_first_loss_is_that_of_no_difference(run: Any) -> None:
    """Policy and reference are one model before the first step: -log sigmoid(0)."""
    _, folder, _ = run
    assert losses(folder)[0] == pytest.approx(0.693147, abs=1e-3)
    assert losses(folder)[-1] < 0.69
    first = metrics(folder)[1]
    assert {"rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"} <= first.keys()


def test_run_folder(run: Any) -> None:
    mode, folder, result = run
    stored = json.loads((folder / "result.json").read_text("utf-8"))
    assert stored["status"] == result.status == "finished" and stored["headline"]["name"] == "preference_accuracy"
    assert stored["metrics"]["after"]["preference_margin"] > stored["metrics"]["before"]["preference_margin"]
    assert stored["metrics"]["data"]["training"]["rows"] == 16 and stored["metrics"]["after"]["preference_pairs"] == 4
    expected = {"merged": "export/merged"} | ({} if mode == "full" else {"adapter": "adapter"})
    assert stored["artifacts"] == expected
    assert stored["metrics"]["export"]["export_kl"] < 0.1
    assert ("four_bit_gap" in stored["metrics"]["export"]) == (mode == "qlora")
    report = (folder / "report.md").read_text("utf-8")
    assert "preference_accuracy" in report and "pairs.jsonl" in report
    if mode != "full":
        names = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert names and not any(".ref." in name for name in names)
        assert all(t.dtype == torch.float32 for t in names.values())


@pytest.mark.slow
def test_the_run_can_be_gone_on_from(run: Any, pairs: list[str], tmp_path: Path) -> None:
    """A continued adapter is its own reference: the first loss is that of no difference again."""
    mode, folder, _ = run
    words = [*MODES[mode], f"model.model_name_or_path={folder}", "eval=none", "eval.num_samples=0", "export=none"]
    dpo(tmp_path / "on", pairs, *words, "eval.evaluators=[]", "train.save_steps=1", steps=1)
    assert losses(tmp_path / "on")[0] == pytest.approx(0.693147, abs=1e-3)


SMALL = ["adapter=lora", "eval.evaluators=[]", "eval.num_samples=0", "export=none", "train.save_steps=2"]


@pytest.mark.slow
def test_evaluations_while_training_change_nothing(pairs: list[str], tmp_path: Path) -> None:
    words = [*SMALL, "train.eval_steps=1", "eval.during_training=[preference]", "eval.evaluators=[preference]"]
    dpo(tmp_path / "with", pairs, *words, steps=2)
    dpo(tmp_path / "without", pairs, *SMALL, steps=2)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    measured = [line["preference_accuracy"] for line in metrics(tmp_path / "with") if "preference_accuracy" in line]
    assert len(measured) == 4  # before, twice, after


def test_dry_run_reads_the_pairs(
    run: Any, pairs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its counts are the run's; what the estimate counts, both answers of a pair, has another name."""
    result = dpo(tmp_path / "run", pairs, "dry_run=true")
    assert result.status == "dry_run" and not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    assert "Nothing was trained" in said
    counts = json.loads((run[1] / "result.json").read_text("utf-8"))["metrics"]["data"]
    assert result.metrics["data"] == counts
    assert f"forward passes of at most 2 × {2 * counts['training']['longest_row']:,} tokens" in said


def test_rows_that_are_no_pairs_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sample/train\.jsonl:1: this row is not a pair of answers"):
        short_run("dpo", tmp_path / "run", "data=sample", "eval.evaluators=[preference]")
    assert not (tmp_path / "run").exists()
