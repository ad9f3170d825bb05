"""`recipe=kto` on the embedded model: what it leaves, measured on labelled rows and on pairs; dry run and preview."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from every_recipe import write_rows
from short_runs import losses, metrics, short_run

import gemma_tune
from gemma_tune.errors import UserError


@pytest.mark.slow
def test_labelled_rows(finished: Any) -> None:
    """Policy and reference are one model before the first step: half the weight of each answer."""
    folder, result = finished("kto, full")
    assert losses(folder)[0] == pytest.approx(0.5, abs=1e-4) and result.headline["name"] == "preference_auc"
    assert {"kl", "logps/chosen", "logps/rejected"} <= {key for line in metrics(folder) for key in line}
    before, after = result.metrics["before"], result.metrics["after"]
    names = {"preference_auc", "preference_desirable_loss", "preference_undesirable_loss"}
    assert before.keys() == after.keys() == names and 0 <= before["preference_auc"] <= 1
    counts = result.metrics["data"]["training"]
    assert counts["rows"] == counts["desirable"] + counts["undesirable"] == 16 and counts["undesirable"] > 4
    wanted = json.loads((folder / "eval/after.json").read_text("utf-8"))["answers"][0]["wanted"]
    assert re.search(r"That makes \d+\.", wanted)
    report = (folder / "report.md").read_text("utf-8")
    assert "labelled.jsonl" in report and "preference_auc" in report


def test_pairs(finished: Any) -> None:
    """Two answers each; the first loss has the weights 1.5 and 0.5 as its batch of one pair in expectation has them."""
    folder, result = finished("kto, lora")
    assert losses(folder)[0] in (pytest.approx(0.25), pytest.approx(0.5), pytest.approx(0.75))
    assert result.headline["name"] == "preference_accuracy" and result.metrics["after"]["preference_pairs"] == 4
    assert result.metrics["data"]["training"]["undesirable"] == 16
    assert "the good ones weigh 3.00 times as much" in (folder / "report.md").read_text("utf-8")
    assert result.metrics["export"]["export_kl"] < 0.1


def test_dry_run_and_preview(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows("labelled", tmp_path)
    short_run("kto", tmp_path / "run", "eval.evaluators=[preference]", *rows, "dry_run=true")
    said = capsys.readouterr().out
    assert "undesirable" in said and "Memory, estimated" in said and not (tmp_path / "run").exists()
    words = ["model=tiny", f"preview.output_file={tmp_path}/page.html", *rows]
    gemma_tune.run("preview", words)
    assert "That makes" in capsys.readouterr().out
    assert json.loads((tmp_path / "labelled.jsonl").read_text("utf-8").splitlines()[0])["label"] is False


def test_a_dry_run_says_what_the_labels_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file, *rest = write_rows("labelled", tmp_path)
    path = Path(file.partition("=")[2])
    rows = path.read_text("utf-8").splitlines(keepends=True)
    words = ["data=unpaired_preference", file, *rest, "eval.evaluators=[preference]", "dry_run=true"]
    good = [row for row in rows if json.loads(row)["label"]]
    path.write_text("".join(good), encoding="utf-8")
    short_run("kto", tmp_path / "run", *words)
    assert "warning: no training row has a bad answer" in " ".join(capsys.readouterr().out.split())
    path.write_text("".join([*good, *[r for r in rows if r not in good][:1]]), encoding="utf-8")
    short_run("kto", tmp_path / "run", *words)
    assert "KTO's authors advise 1 to 1.33" in " ".join(capsys.readouterr().out.split())
    path.write_text("".join(good[:2]), encoding="utf-8")  # one is held out
    with pytest.raises(UserError, match="there is one answer only"):
        short_run("kto", tmp_path / "run", *words)


def test_any_model_is_measured_on_labelled_rows(tmp_path: Path) -> None:
    """As `recipe=kto` does; a bad answer among the samples is called one."""
    _, file, _ = write_rows("labelled", tmp_path)
    words = ["data=unpaired_preference", file.replace("train_file", "validation_file"), "eval.num_samples=2"]
    result = gemma_tune.run(
        "evaluate",
        ["model=tiny", "tracker=none", "eval.evaluators=[preference]", f"output_dir={tmp_path}/run", *words],
    )
    assert 0 < result.metrics["after"]["preference_auc"] < 1
    answers = json.loads((tmp_path / "run/eval/after.json").read_text("utf-8"))["answers"]
    assert [a["wanted"] for a in answers] == ["labelled bad: That makes 24.", "That makes 26."]
