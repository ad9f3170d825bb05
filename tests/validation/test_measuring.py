"""What is said, before anything runs, of measurements that would not be made; and what `recipe=evaluate` hands on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

import gemma_tune
from gemma_tune import UserError
from gemma_tune.catalog.fetching import name_on_hub
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import ModelConfig
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import absolute, looks_local
from gemma_tune.run.tracking import Tracker

NO_ROWS = ["data=auto"]
HELD_OUT = ["data=auto", "data.validation_file=assets://sample/validation.jsonl"]
TESTS = ["data=auto", "data.test_files.test=assets://sample/test.jsonl"]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (NO_ROWS, "data.validation_file or data.test_files.mine"),
        ([*NO_ROWS, "eval.evaluators=[answers]"], "data.test_files.mine"),
        ([*NO_ROWS, "eval.evaluators=[held_out_loss]"], "data.validation_file"),
        ([*HELD_OUT, "eval.evaluators=[answers]"], "data.test_files.mine"),
        ([*TESTS, "eval.evaluators=[kl]", "eval.kl.reference=assets://tiny"], "data.validation_file"),
        ([*TESTS, "data.test_files.test=null"], "data.validation_file or data.test_files.mine"),
    ],
)
def test_nothing_would_be_measured(words: list[str], keys: str) -> None:
    with pytest.raises(UserError) as error:
        compose_config("evaluate", words)
    assert "nothing would be measured" in str(error.value) and str(error.value).endswith(f"set {keys}.")


@pytest.mark.parametrize(
    "words",
    [
        HELD_OUT,
        TESTS,
        [*NO_ROWS, "eval=long_context"],
        ["data=auto", "data.train_file=assets://sample/train.jsonl", "data.validation_split_percentage=5"],
        [*HELD_OUT, "eval.evaluators=[]"],
    ],
)
def test_something_would_be_measured(words: list[str]) -> None:
    """By one evaluator of those that are asked, or a few answers to read."""
    assert compose_config("evaluate", words)


def test_no_evaluator_and_no_row_to_answer() -> None:
    with pytest.raises(UserError, match="nothing to measure"):
        compose_config("evaluate", [*TESTS, "eval.evaluators=[]"])


@pytest.mark.parametrize("key", ["during_training=[answers]", "max_samples_during_training=3", "before=false"])
def test_settings_of_training_have_no_effect(key: str) -> None:
    name = f"eval.{key.split('=')[0]} has no effect"
    with pytest.raises(UserError, match=f"{name} with recipe=evaluate"):
        compose_config("evaluate", [f"eval.{key}", "eval.evaluators=[held_out_loss]"])
    if key.startswith("before"):
        assert compose_config("lora_sft", [f"eval.{key}"])
        return
    with pytest.raises(UserError, match=f"{name} without train.eval_steps"):
        compose_config("lora_sft", [f"eval.{key}"])
    assert compose_config("lora_sft", [f"eval.{key}", "train.eval_steps=1"])


def test_folders_that_are_not_there(folder: Path) -> None:
    """`runs/typo` is no name of the Hub where there is a folder runs."""
    (folder / "runs" / "first").mkdir(parents=True)
    assert looks_local("runs/frist") and not looks_local("owner/name")
    for recipe, words in (
        ("compare", ["compare.models=[owner/name,runs/frist]"]),
        ("evaluate", ["eval=kl", "eval.kl.reference=runs/frist"]),
        ("evaluate", ["model.model_name_or_path=runs/frist"]),
    ):
        with pytest.raises(UserError, match=r"runs/frist: there is no such .*folder\. Did you mean runs/first\?"):
            compose_config(recipe, words)


def test_answers_are_sent_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker is given them as a training run gives its own; whatever it does, the results are written by then."""
    sent: list[tuple[Any, ...]] = []

    def log_samples(tracker: Tracker, before: Sequence[Any], after: Sequence[Any], step: int) -> None:
        assert (tmp_path / "run" / "eval" / "after.json").is_file()
        sent.append((list(before), [row["id"] for row in after], step))

    monkeypatch.setattr(Tracker, "log_samples", log_samples)
    words = ["eval.max_samples=3", "eval.max_new_tokens=4", "eval.num_samples=2", "eval.evaluators=[answers]"]
    gemma_tune.run("evaluate", [f"output_dir={tmp_path / 'run'}", "tracker=none", *words])
    [(before, after, step)] = sent
    assert (before, len(after), step) == ([], 2, 0)


def begun(folder: Path, status: str = "running", **data: str) -> Path:
    """A run folder as a run leaves it before it has weights."""
    folder.mkdir(parents=True)
    cfg = compose_config("lora_sft", ["data=auto", *(f"data.{key}={value}" for key, value in data.items())])
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(cfg)), encoding="utf-8")
    (folder / "manifest.json").write_text('{"gemma_tune": "0"}', encoding="utf-8")
    (folder / "result.json").write_text(json.dumps({"status": status}), encoding="utf-8")
    return folder


def problems(recipe: str, *words: str) -> str:
    with pytest.raises(UserError) as error:
        compose_config(recipe, words)
    return str(error.value)


def test_a_folder_of_runs_is_no_model(folder: Path) -> None:
    """It is said alone: that nothing would be measured follows from it."""
    begun(folder / "runs" / "first", train_file="assets://sample/train.jsonl")
    said = problems("evaluate", "model.model_name_or_path=runs")
    assert "this folder holds runs" in said and said.endswith("name one: runs/first.")
    assert "runs/first" in problems("compare", "compare.models=[runs,assets://tiny]")
    said = problems("evaluate", "model.model_name_or_path=runs/nope")
    assert "no such model folder" in said and "nothing would be measured" not in said


def test_only_what_was_named_is_in_vain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends while its settings are read brings its data, which nobody has typed."""
    run = begun(folder / "runs" / "x", train_file="assets://sample/train.jsonl")
    monkeypatch.setattr("gemma_tune.validation.measuring.is_run_with_results", lambda name: True)
    said = problems("compare", f"compare.models=[{run}]")
    assert "fewer than two" in said and "without effect" not in said
    assert "eval.max_samples: without effect" in problems("compare", f"compare.models=[{run}]", "eval.max_samples=3")


@pytest.mark.parametrize(
    ("status", "said"), [("running", "not finished"), ("failed", "rerun="), ("stopped", "rerun="), ("finished", "")]
)
def test_a_run_without_weights(folder: Path, status: str, said: str) -> None:
    run = begun(folder / "runs" / "x", status, train_file="assets://sample/train.jsonl")
    with pytest.raises(UserError) as error:
        find_source(ModelConfig(str(run)))
    assert said in str(error.value) and ("not finished" in str(error.value)) == (status != "finished")
    (run / "export" / "gguf").mkdir(parents=True)
    file = run / "export" / "gguf" / "x.gguf"
    file.write_bytes(b"")
    with pytest.raises(UserError, match=f"recipe=chat, serve and evaluate take {file}"):
        find_source(ModelConfig(str(run)))


def test_paths_have_no_way_back(folder: Path) -> None:
    (folder / "a").mkdir()
    assert absolute("a/../a") == str(folder / "a")
    (folder / "else" / "deep").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "else" / "deep")
    assert absolute("link/../x") == str(folder / "link" / ".." / "x")  # folder/else/x


def test_a_file_is_no_model_folder(folder: Path) -> None:
    (folder / "qa.csv").write_text("question,answer\n", encoding="utf-8")
    (folder / "notes.md").write_text("", encoding="utf-8")
    for recipe, key in (("models", "models.inspect"), ("export", "model.model_name_or_path")):
        said = problems(recipe, f"{key}=qa.csv")
        assert "data.train_file" in said and "folder that it is in" not in said
        said = problems(recipe, f"{key}=notes.md")
        assert "this is a file, and not a model" in said and ".." not in said and "data.train_file" not in said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("export=GGUF,w4a16", "'export.formats=[gguf,w4a16]'"),
        ("train.learning_rate=1e-4;2e-4", "-m train.learning_rate=1e-4,2e-4"),
        ("data.delimiter=;", "is found in its first line"),
        ("data.sep=x", "is found in its first line"),
        ("data=csv", "write data=auto"),
        ("data=parquet", "write data=auto"),
        ("data.train_files=qa.csv", "for one alone: data.train_file=qa.csv"),
    ],
)
def test_words_of_other_tools_are_answered(word: str, said: str) -> None:
    assert said in problems("lora_sft", word)


def test_preview_loads_no_weights() -> None:
    assert "loads no weights" in problems("preview", "model.load_in_4bit=true")


@pytest.mark.parametrize(
    ("name", "meant"), [("gemma9", "_it?"), ("gemma2_9b_p", "_it?"), ("gemma2_9bpt", "gemma2_9b_pt?")]
)
def test_most_mean_the_instruction_tuned_model(name: str, meant: str) -> None:
    with pytest.raises(UserError) as error:
        name_on_hub("models.fetch", name)
    assert str(error.value).endswith(meant)
