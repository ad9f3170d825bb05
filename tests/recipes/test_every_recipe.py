"""What holds for every training recipe: golden losses, the run folder, the manifest's inputs, each step logged once.

The runs are those of `every_recipe.py`, made once for all tests (fixture `finished`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from every_recipe import SHORT_RUNS, STEPS, short_words, slow_marked, write_rows
from short_runs import hold_to_golden, metrics, short_run

import gemma_tune
from gemma_tune.config.methods import METHODS
from gemma_tune.run.paths import ASSETS, CONFIGS

Finished = Callable[[str], tuple[Path, gemma_tune.RunResult]]
STAGES = ("tuned", "int4")  # of tune_to_int4, each a run folder of its own
ALWAYS = {"config.yaml", "manifest.json", "metrics.jsonl", "result.json", "report.md", "report.html", "eval"}
PERHAPS = {"adapter", "export", "checkpoints", "loss.png", "quant_plan.json", "teacher"}
RESUMED = [
    "lora_sft",
    "dpo, lora",
    *slow_marked(["reward_model, lora", "grpo, lora"]),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("kto, lora", "qat, lora")),
]


def run_folders(name: str, folder: Path) -> list[Path]:
    """The run folders of trainings: of tune_to_int4 its two stages."""
    return [folder / stage for stage in STAGES] if name == "tune_to_int4" else [folder]


def read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def test_every_training_recipe_is_here() -> None:
    """A new recipe that trains is added to SHORT_RUNS, with golden losses."""
    trains = {f.stem for f in (CONFIGS / "recipe").glob("*.yaml")}
    trains = {name for name in trains if METHODS.get(name, METHODS["sft"]).trains}
    assert {run.recipe for run in SHORT_RUNS.values()} == trains


@pytest.mark.parametrize("name", slow_marked(SHORT_RUNS))
def test_golden_losses(name: str, finished: Finished) -> None:
    for folder in run_folders(name, finished(name)[0]):
        hold_to_golden(f"{name}, {folder.name}" if name == "tune_to_int4" else name, folder)


@pytest.mark.parametrize("name", slow_marked(SHORT_RUNS))
def test_the_same_run_folder(name: str, finished: Finished) -> None:
    """As design.md lays it out; nothing else lies in it, and what result.json names is there."""
    top, result = finished(name)
    assert result.status == "finished" and not result.failures
    for folder in run_folders(name, top):
        inside = {p.name for p in folder.iterdir()}
        assert inside >= ALWAYS, f"lacks {ALWAYS - inside}"
        assert inside <= ALWAYS | PERHAPS, f"also {inside - ALWAYS - PERHAPS}"
        assert {"before.json", "after.json"} <= {p.name for p in (folder / "eval").iterdir()}
        stored = read(folder / "result.json")
        assert stored["status"] == "finished" and stored["seconds"]["train"] > 0 and stored["peak_memory_mb"] > 100
        steps = [line for line in metrics(folder) if "loss" in line]
        rated = [line for line in steps if "tokens_per_second" in line]
        assert rated and all(line["tokens_per_second"] > 0 for line in rated)
        rewarded = [line for line in steps if "reward" in line]
        assert rated == (rewarded or steps) and all(("mfu" in line) != bool(rewarded) for line in steps)
        assert {"name", "before", "after"} == stored["headline"].keys()
        assert {"before", "after", "data", "weights"} <= stored["metrics"].keys()
        manifest = read(folder / "manifest.json")
        assert {"versions", "seed", "git", "inputs", "artifacts"} <= manifest.keys()
        assert manifest["artifacts"].keys() == stored["artifacts"].keys()
        assert all((folder / path).exists() for path in stored["artifacts"].values())
        with_adapter = "peft_type: none" not in (folder / "config.yaml").read_text("utf-8").split("data:")[0]
        assert ("adapter" in inside) == ("adapter" in stored["artifacts"]) == with_adapter
        if list(folder.glob("checkpoints/*")):
            assert all(re.fullmatch(r"step-\d+", p.name) for p in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("name", slow_marked(SHORT_RUNS))
def test_the_same_kinds_of_inputs(name: str, finished: Finished) -> None:
    """Every data file and every file of the base model, each with its SHA-256."""
    for folder in run_folders(name, finished(name)[0]):
        inputs = read(folder / "manifest.json")["inputs"]
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in inputs.values()), inputs
        config = (folder / "config.yaml").read_text("utf-8")
        files = set(re.findall(r"\S+\.jsonl", config.split("reward:")[0]))
        found = [Path(f.removeprefix("assets://")) if "://" not in f else ASSETS / f.split("://")[1] for f in files]
        assert found and {str(f) for f in found} <= inputs.keys(), f"data files {found}: {list(inputs)}"
        model = {Path(f).name for f in inputs if Path(f).suffix != ".jsonl"}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= model


@pytest.mark.parametrize("name", slow_marked(SHORT_RUNS))
def test_each_step_is_logged_once(name: str, finished: Finished) -> None:
    for folder in run_folders(name, finished(name)[0]):
        check_steps(folder)


def check_steps(folder: Path) -> None:
    """Each training step once, in order; the figures of one step once."""
    lines = metrics(folder)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    # Beside training: what is measured at a step, once; the last step may be measured while training and after it
    measured = [(line["step"], *sorted(line.keys() - {"step"})) for line in lines if "loss" not in line]
    assert all(measured.count(each) == 1 for each in measured if each[0] < STEPS), measured


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_where_one_run_ends(name: str, finished: Finished, tmp_path: Path) -> None:
    """Five steps and five more: the same lines of metrics.jsonl, and the same bytes of the adapter."""
    whole, _ = finished(name)
    begun = tmp_path / "begun"
    shutil.copytree(whole, begun)
    (begun / "checkpoints/step-10").rename(begun / "checkpoints/checkpoint-10")  # half-written
    for gone in ("adapter", "export"):
        shutil.rmtree(begun / gone, ignore_errors=True)
    (begun / "result.json").write_text('{"status": "interrupted"}', encoding="utf-8")
    lines = (begun / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 7 and "train_runtime" not in line]
    # Two more than the checkpoint has, and a line that was being written
    (begun / "metrics.jsonl").write_text("".join(kept) + kept[-1][:9], encoding="utf-8")
    words = [*short_words(name, whole), "export=none"]
    short_run(SHORT_RUNS[name].recipe, begun, *words, steps=STEPS)
    check_steps(begun)
    logged = [[_comparable(line) for line in metrics(folder) if "train_runtime" not in line]
                for folder in (whole, begun)]  # fmt: skip
    assert logged[0] == logged[1]
    one, other = ((f / "adapter" / "adapter_model.safetensors").read_bytes() for f in (whole, begun))
    assert one == other
    assert "resume_from_checkpoint: auto" in (begun / "config.yaml").read_text("utf-8")  # a rerun is one run
    if (whole / "eval/completions.jsonl").is_file():
        assert (whole / "eval/completions.jsonl").read_text() == (begun / "eval/completions.jsonl").read_text()


def _comparable(line: dict[str, Any]) -> dict[str, Any]:
    """Without times."""
    return {key: value for key, value in line.items() if not re.search(r"time|second|flos|mfu", key)}


FROM_THE_HUB = """
import json, sys
import gemma_tune
folder, rows, *recipes = sys.argv[1:]
few = ["model.model_name_or_path=google/gemma-tiny", "model.dtype=float32", "tracker=none", "train.max_steps=1",
       "train.warmup_steps=0", "train.per_device_train_batch_size=2", "eval.num_samples=0", "adapter=lora",
       "data.validation_split_percentage=33"]
for recipe in recipes:
    words = ["eval.evaluators=[]", "data=prompt_completion"]
    if recipe in ("dpo", "reward_model"):
        words = ["eval.evaluators=[]", "data=preference"]
    if recipe == "qat":
        words = ["eval.evaluators=[held_out_loss]", "data=prompt_completion", "quant.max_kl_samples=2", "export=merged"]
    if recipe == "grpo":
        words = ["eval.evaluators=[]", "data=columns", "data.prompt_column=prompt", "data.completion_column=completion",
                 "reward=none", "reward.length.weight=1", "reward.length.max_tokens=5", "train.num_generations=2",
                 "train.max_completion_length=4", "data.validation_split_percentage=0"]
    rows_of = f"{rows}/pairs" if "data=preference" in words else f"{rows}/answers"
    words += [f"data.dataset_name={rows_of}", f"output_dir={folder}/{recipe}"]
    words += [] if recipe == "qat" else ["export=none"]
    gemma_tune.run(recipe, list({w.split("=")[0]: w for w in [*few, *words]}.values()))
"""


@pytest.mark.parametrize(
    "recipes", [["lora_sft"], pytest.param(["dpo", "reward_model", "grpo", "qat"], marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_what_comes_from_the_hub_is_named_with_its_commit(recipes: list[str], tmp_path: Path) -> None:
    """The base's commit and the data set's revision, whatever the recipe."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--google--gemma-tiny"
    shutil.copytree(ASSETS / "tiny", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    for kind in ("pairs", "answers"):
        write_rows(kind, tmp_path / "rows" / kind)
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env.pop("HF_HUB_CACHE", None)
    script = [sys.executable, "-c", FROM_THE_HUB, str(tmp_path / "runs"), str(tmp_path / "rows"), *recipes]
    done = subprocess.run(script, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for recipe in recipes:
        inputs = read(tmp_path / "runs" / recipe / "manifest.json")["inputs"]
        assert inputs.get("google/gemma-tiny") == f"commit {commit}", f"{recipe}: {inputs}"
        assert any(told == "revision main" for told in inputs.values()), f"{recipe}: {inputs}"
