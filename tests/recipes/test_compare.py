"""`recipe=compare`: what runs have measured, and models measured now, on the same rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gemma_tune
from gemma_tune import UserError
from gemma_tune.__main__ import main
from gemma_tune.cli.compose import load_stored
from gemma_tune.cli.runner import run_recipe
from gemma_tune.errors import RunError
from gemma_tune.run.paths import ASSETS
from gemma_tune.steps import measure_only

ROWS = ["model.dtype=float32", "data.max_eval_samples=6", "eval.max_samples=5",
        "eval.num_samples=1", "eval.max_new_tokens=8"]  # fmt: skip


def compare(folder: Path, *models: object, words: tuple[str, ...] = (), rows: bool = True) -> gemma_tune.RunResult:
    named = f"compare.models=[{','.join(map(str, models))}]"
    return gemma_tune.run("compare", [named, f"output_dir={folder}", "tracker=none", *(ROWS if rows else ()), *words])


def changed(folder: Path, **values: Any) -> None:
    """Other values in what a run has measured."""
    file = folder / "eval" / "after.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), encoding="utf-8")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with one weight changed much."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(ASSETS / "tiny", folder)
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    name = next(n for n in weights if "layers.3.mlp.down_proj" in n)
    weights[name] = weights[name] + 0.05 * torch.randn(weights[name].shape, dtype=weights[name].dtype)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a run has measured it."""
    folder = tmp_path_factory.mktemp("runs") / "measured"
    gemma_tune.run("evaluate", [f"output_dir={folder}", "tracker=none", *ROWS])
    return folder


@pytest.mark.slow
def test_a_run_and_a_model(measured: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = compare(tmp_path / "run", measured, other)
    assert set(result.metrics) == {"held_out_loss", "test_exact_match", "new_phrasings_exact_match"}
    losses = result.metrics["held_out_loss"]
    stored = json.loads((measured / "eval" / "after.json").read_text("utf-8"))["figures"]["held_out_loss"]
    assert losses["measured"]["mean"] == pytest.approx(stored)
    assert losses["other"]["mean"] > stored
    page = (tmp_path / "run" / "comparison.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>") and 'src="http' not in page and "<script src" not in page
    assert "held" in (tmp_path / "run" / "comparison.md").read_text("utf-8")
    said = capsys.readouterr().out
    assert "as measured in its run" in said and "to be measured" in said and "comparison.html" in said
    assert "test_exact_match (5 rows; higher is better)" in said and "\\_" not in said and "|" not in said
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["inputs"]
    assert {str(measured / "eval" / "after.json"), str(other / "config.json")} <= set(manifest)
    assert [p.name for p in (tmp_path / "run" / "eval").iterdir()] == ["2-other.json"]


def test_measured_runs_are_compared_without_a_model(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is loaded: two results are files."""

    def load(*_: object) -> None:
        raise AssertionError("no model is needed")

    monkeypatch.setattr(measure_only, "open_engine", load)
    again = tmp_path / "again"
    shutil.copytree(measured, again)
    result = compare(tmp_path / "run", measured, again, words=("compare.names=[a,b]",), rows=False)
    assert result.metrics["held_out_loss"]["b"]["mean"] == result.metrics["held_out_loss"]["a"]["mean"]
    assert run_recipe(load_stored(tmp_path / "run", [f"output_dir={tmp_path / 'anew'}"])).metrics == result.metrics


@pytest.mark.parametrize(
    ("models", "words", "message"),
    [
        (["nowhere/at/all", "{measured}"], (), "nowhere/at/all"),
        (["{measured}"], (), "fewer than two"),
        (["{measured}", "{measured}"], (), "is named twice"),
        (["{measured}", "{other}"], ("compare.names=[a]",), "has 1 names for 2 models"),
        (["{measured}", "{other}"], ("compare.names=[a,a]",), "a is used 2 times"),
        (["{measured}", "runs/measure"], (), r"no such model folder.* Did you mean runs/measured\?"),
        (["{measured}", "{other}"], ("model=gemma3_1b_it",), "model_name_or_path has no effect"),
        (["{measured}", "{other}"], ("eval=none",), "nothing to compare"),
        (["{measured}", "{other}"], ("data=auto",), "nothing would be measured"),
        (["{measured}", "{other}"], ("eval.before=false",), "eval.before has no effect"),
        (["{measured}", "{other}"], ("model.device=cuda",), "no GPU that torch can use"),
        (["{measured}", "{other}"], ("adapter=lora",), "adapter has no effect"),
    ],
)
def test_mistakes(
    measured: Path,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: list[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "runs" / "measured").mkdir(parents=True)
    named = [m.format(measured=measured, other=other) for m in models]
    with pytest.raises(UserError, match=message):
        compare(tmp_path / "run", *named, words=words)
    assert not (tmp_path / "run").exists()


def test_settings_of_measuring_have_no_effect_on_what_was_measured(measured: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(measured, again)
    words = ("model.dtype=float32", "eval=number", "data.max_eval_samples=3", "train.max_length=9")
    with pytest.raises(UserError) as error:
        compare(tmp_path / "run", measured, again, words=words, rows=False)
    keys = (
        "model.dtype, data.max_eval_samples, eval.evaluators, eval.max_new_tokens, eval.answers.match, train.max_length"
    )
    assert str(error.value).startswith(f"{keys}: without effect")
    assert len(error.value.problems) == 1 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_figure_of_other_rows_is_left_out(measured: Path, other: Path, tmp_path: Path) -> None:
    """The loss is of the same rows, and compared."""
    result = compare(tmp_path / "run", measured, other, words=("eval.max_samples=3",))
    assert set(result.metrics) == {"held_out_loss"}
    text = (tmp_path / "run" / "comparison.md").read_text("utf-8")
    assert "exact_match is left out: the rows aren't the same. measured has 5, 2 of them not of other" in text


@pytest.mark.slow
def test_nothing_in_common_keeps_what_was_measured(measured: Path, other: Path, tmp_path: Path) -> None:
    """Said before anything is measured where the runs' own results say it; else the folder stays."""
    words = ("eval.max_samples=3", "data.max_eval_samples=3")
    with pytest.raises(RunError, match=r"recipe=evaluate model\.model_name_or_path=….*is kept in .*eval"):
        compare(tmp_path / "run", measured, other, words=words)
    assert json.loads((tmp_path / "run" / "eval" / "2-other.json").read_text("utf-8"))["figures"]["test_rows"] == 3
    less = tmp_path / "less"
    shutil.copytree(measured, less)
    changed(less, rows={})
    with pytest.raises(UserError, match=r"no figure in common"):
        compare(tmp_path / "second", measured, less, other)
    assert not (tmp_path / "second").exists()


def test_what_is_wrong_with_the_second_model_is_said_before_the_first_is_measured(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("nothing is measured")

    monkeypatch.setattr(measure_only, "open_engine", load)
    bare = tmp_path / "bare"
    shutil.copytree(other, bare)
    (bare / "tokenizer.json").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError) as error:
        compare(tmp_path / "run", other, bare, empty, words=("data=sample",))
    assert error.value.problems[0].startswith(f"compare.models: {bare}: this folder has no tokenizer")
    assert error.value.problems[1].startswith(f"compare.models: {empty}: this folder has no config.json")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_keeps_the_others(other: Path, tmp_path: Path) -> None:
    """Its numbers are looked at when they are loaded."""
    broken = tmp_path / "x" / "broken"
    shutil.copytree(other, broken)
    file = next(broken.glob("*.safetensors"))
    save_file({name: tensor / 0 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    words = [f"compare.models=[{other},{broken}]", f"output_dir={tmp_path / 'run'}", "tracker=none", "data=sample"]
    words += ROWS
    assert main(["recipe=compare", *words]) == 1
    kept = tmp_path / "run" / "eval" / "1-other.json"
    assert "test_exact_match" in json.loads(kept.read_text("utf-8"))["figures"]
    assert json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["status"] == "failed"


ROW: dict[str, Any] = {"id": "a", "score": 1.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it can't be read"),
        ("[1]", "it isn't a JSON object"),
        ("{}", "it has no figures"),
        (json.dumps({"figures": {}}), "it has no rows"),
        (json.dumps({"figures": {"acc": "1"}, "rows": {}}), "the figure acc is no number"),
        (json.dumps({"figures": {}, "rows": {"acc": [1]}}), "the rows of acc are no list of JSON objects"),
        (json.dumps({"figures": {}, "rows": {"acc": [ROW, {"score": 1}]}}), "row 2 of acc has no id"),
        (json.dumps({"figures": {}, "rows": {"acc": [{"id": "a"}]}}), "row 1 of acc has no score"),
        (json.dumps({"figures": {}, "rows": {"acc": [ROW | {"weight": "1"}]}}), "the weight of row 1 of acc"),
        (json.dumps({"figures": {}, "rows": {}, "conditions": 1}), "it has no conditions"),
    ],
)
def test_results_that_are_none(measured: Path, tmp_path: Path, text: str, reason: str) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(measured, bad)
    (bad / "eval" / "after.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        compare(tmp_path / "run", measured, bad, rows=False)
    assert str(error.value).startswith(f"compare.models: {bad / 'eval' / 'after.json'}: {reason}")
    assert "recipe=evaluate model.model_name_or_path=…" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_failed_is_not_taken(measured: Path, tmp_path: Path) -> None:
    failed = tmp_path / "failed"
    shutil.copytree(measured, failed)
    (failed / "result.json").write_text('{"status": "failed"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"failed is a run that has not finished \(its status is failed\)"):
        compare(tmp_path / "run", measured, failed)


@pytest.mark.slow
def test_runs_that_have_changed_are_not_passed_over(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    shutil.copytree(measured, again)
    for _ in range(2):
        first = compare(tmp_path / "run", measured, again, rows=False)
    assert "This run is done already" in capsys.readouterr().out
    rows = json.loads((again / "eval" / "after.json").read_text("utf-8"))["rows"]
    changed(again, rows={"held_out_loss": [row | {"score": row["score"] + 1} for row in rows["held_out_loss"]]})
    with pytest.raises(UserError, match=r"after\.json: this file has changed since .*overwrite=true"):
        compare(tmp_path / "run", measured, again, rows=False)
    second = compare(tmp_path / "run", measured, again, rows=False, words=("overwrite=true",))
    means = [r.metrics["held_out_loss"]["again"]["mean"] for r in (first, second)]
    assert means[1] == pytest.approx(means[0] + 1)


@pytest.mark.slow
def test_a_model_inside_the_folder_is_not_deleted(measured: Path, other: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    compare(run, measured, other)
    shutil.copytree(other, run / "mine")
    with pytest.raises(UserError, match=r"overwrite=true would delete .*mine, which this run needs"):
        compare(run, measured, run / "mine", words=("overwrite=true",))


def test_names_that_are_alike_have_files_of_their_own(other: Path, tmp_path: Path) -> None:
    words = ("data=sample", "compare.names=[x/y,x-y]", "eval.evaluators=[held_out_loss]", "eval.num_samples=0")
    compare(tmp_path / "run", other, ASSETS / "tiny", words=words)
    losses = [
        json.loads((tmp_path / "run" / "eval" / f"{n}-x-y.json").read_text("utf-8"))["figures"]["held_out_loss"]
        for n in (1, 2)
    ]
    assert losses[0] > losses[1]


def test_other_conditions_are_told(measured: Path, tmp_path: Path) -> None:
    """As the runs have stored them."""
    again = tmp_path / "again"
    shutil.copytree(measured, again)
    for folder, dtype in ((again, "bfloat16"), (tmp_path / "first", "float32")):
        if not folder.exists():
            shutil.copytree(measured, folder)
        changed(folder, conditions={"model.dtype": dtype})
    compare(tmp_path / "run", tmp_path / "first", again, rows=False)
    text = (tmp_path / "run" / "comparison.md").read_text("utf-8")
    assert "- model.dtype wasn't the same: float32 for first and bfloat16 for again." in text
