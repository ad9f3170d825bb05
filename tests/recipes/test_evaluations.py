"""Evaluations while training: they change nothing, and they decide which step is kept and when training ends."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import losses, metrics, short_run
from small_models import save

from gemma_tune.__main__ import main
from gemma_tune.errors import RunError, UserError
from gemma_tune.run.checkpoints import seal
from gemma_tune.run.manifest import file_digest

SEEDS = """
import random
import numpy
import torch

def seeds(engine, inputs):
    random.seed(1)
    numpy.random.seed(2)
    torch.manual_seed(3)
    engine.model.eval()
    return {"drawn": torch.rand(1).item() + random.random() + numpy.random.rand()}
"""

SEEN = """
def seen(engine, inputs):
    ids = list(range(10, 60))
    return {"seen": next(engine.log_probs([ids], "seen")).sum().item()}
"""

# Gives one value after the other; text is an error that is raised.
SCRIPTED = """
from math import inf, nan

VALUES = iter({values})

def peak(engine, inputs):
    value = next(VALUES)
    if isinstance(value, str):
        raise ValueError(value)
    return {{{figure!r}: value}}
"""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Short rows, and nothing measured that isn't asked for."""
    folder = tmp_path_factory.mktemp("rows")
    words = ["data=messages"]
    for key, begin, end in (("train_file", 0, 24), ("validation_file", 24, 28), ("test_files.test", 28, 31)):
        rows = [[("user", f"Say {i}."), ("assistant", f"{i}, and then {i * 7}.")] for i in range(begin, end)]
        lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) for row in rows]
        (folder / f"{key}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        words.append(f"data.{key}={folder / key}.jsonl")
    return [
        *words, "eval.before=false", "eval.evaluators=[]", "eval.num_samples=0", "eval.max_new_tokens=4",
        "train.warmup_steps=0", "train.lr_scheduler_type=constant", "train.per_device_train_batch_size=2",
    ]  # fmt: skip


def scripted(folder: Path, *values: Any, figure: str = "peak") -> str:
    """A user's evaluator with a figure of these values, one an evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.py").write_text(SCRIPTED.format(values=list(values), figure=figure), encoding="utf-8")
    return f"{folder / 'own.py'}:peak"


def best_words(evaluator: str, *words: str) -> list[str]:
    """The best step by a scripted figure, evaluated at every second one."""
    return ["train.metric_for_best_model=peak", "train.eval_steps=2", f"eval.during_training=[{evaluator}]", *words]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        pytest.param("full_sft", [], marks=pytest.mark.slow),
        ("lora_sft", ["adapter.lora_dropout=0.1", "train.gradient_accumulation_steps=2"]),
        pytest.param(
            "qlora_sft",
            ["adapter.lora_dropout=0.1", "train.packing=true", "train.max_length=64", "model.dtype=bfloat16",
             "train.per_device_train_batch_size=1", "train.gradient_checkpointing=true"],
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_evaluations_move_no_bit(recipe: str, words: list[str], quick: list[str], tmp_path: Path) -> None:
    """With answers and losses every second step, and an evaluator that sets every seed: what one without them gives."""
    (tmp_path / "own.py").write_text(SEEDS, encoding="utf-8")
    measured = f"eval.during_training=[held_out_loss,answers,{tmp_path / 'own.py'}:seeds]"
    kept = [*quick, *words, "export=none", "train.save_steps=6"]
    short_run(recipe, tmp_path / "without", *kept, steps=6)
    result = short_run(recipe, tmp_path / "with", *kept, measured, "train.eval_steps=2", steps=6)
    found = [line for line in metrics(tmp_path / "with") if "held_out_loss" in line]
    assert [line["step"] for line in found] == [2, 4, 6] and not result.failures
    assert all({"test_exact_match", "drawn"} <= set(line) for line in found)
    assert losses(tmp_path / "with") == losses(tmp_path / "without") and len(losses(tmp_path / "with")) == 6
    a, b = (tmp_path / name / "checkpoints" / "step-6" for name in ("without", "with"))
    [file] = [f.name for f in a.glob("*.safetensors")]
    assert file_digest(a / file) == file_digest(b / file)
    one, two = (torch.load(f / "rng_state.pth", weights_only=False) for f in (a, b))
    assert one["python"] == two["python"] and (one["numpy"][1] == two["numpy"][1]).all()
    assert torch.equal(one["cpu"], two["cpu"])


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        pytest.param("full_sft", ["train.save_steps=3", "train.save_total_limit=1"], marks=pytest.mark.slow),
        ("lora_sft", ["adapter=pissa", "adapter.lora_dropout=0.1"]),
        pytest.param("qlora_sft", ["adapter=dora"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_the_best_step_is_what_is_left(
    recipe: str, words: list[str], quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adapter and export are to the bit those of a run that ended at that step."""
    words = [*quick, *words, "export.dtype=float32", "eval.evaluators=[held_out_loss]"]
    short = short_run(recipe, tmp_path / "short", *words, steps=4)
    capsys.readouterr()
    best = best_words(scripted(tmp_path, 1, 2, 1.5))
    result = short_run(recipe, tmp_path / "best", *words, *best, steps=6)
    assert "The weights are those of step 4 of 6, the best by peak (2)" in capsys.readouterr().out
    assert "The weights are those of step 4 of 6" in (tmp_path / "best" / "report.md").read_text("utf-8")
    stored = json.loads((tmp_path / "best" / "result.json").read_text("utf-8"))["metrics"]
    assert stored["best"] == {"step": 4, "metric": "peak", "value": 2.0}
    assert stored["steps"] == 6 and stored["stopped_early"] is False
    assert result.metrics["after"] == short.metrics["after"]
    for path in result.artifacts.values():
        [file] = [f.name for f in (tmp_path / "best" / path).glob("*.safetensors")]
        assert file_digest(tmp_path / "best" / path / file) == file_digest(tmp_path / "short" / path / file), path
    last = metrics(tmp_path / "best")[-1]
    assert last["step"] == 4 and last["held_out_loss"] == result.metrics["after"]["held_out_loss"]
    checkpoints = sorted(p.name for p in (tmp_path / "best" / "checkpoints").iterdir())
    assert checkpoints == (["step-4", "step-6"] if recipe == "full_sft" else ["step-2", "step-4"])


@pytest.mark.slow
def test_less_is_better_by_the_name(quick: list[str], tmp_path: Path) -> None:
    """The best by the held-out loss is measured again at the end, on the same rows."""
    words = [
        "train.metric_for_best_model=held_out_loss", "train.eval_steps=1", "export=none", "train.learning_rate=3e-2",
        "eval.evaluators=[held_out_loss]",
    ]  # fmt: skip
    result = short_run("lora_sft", tmp_path / "run", *quick, *words, steps=5)
    seen = {line["step"]: line["held_out_loss"] for line in metrics(tmp_path / "run")[:-1] if "held_out_loss" in line}
    assert list(seen) == [1, 2, 3, 4, 5]
    assert result.metrics["best"]["value"] == min(seen.values()) == seen[result.metrics["best"]["step"]]
    assert result.metrics["after"]["held_out_loss"] == pytest.approx(min(seen.values()), rel=1e-5)


@pytest.mark.parametrize("recipe", [pytest.param("full_sft", marks=pytest.mark.slow), "lora_sft"])
@pytest.mark.slow
def test_the_same_arithmetic_while_training_and_after(recipe: str, quick: list[str], tmp_path: Path) -> None:
    """accelerate puts mixed precision around the forward pass of what it trains, and leaves it there afterwards.

    A step at a rate of nothing changes no weight: what a model says before, while and after is the same. SDPA and eager
    attention differ by less than 1e-6 of it, and products in bfloat16 by more than 1e-4.
    """
    (tmp_path / "own.py").write_text(SEEN, encoding="utf-8")
    evaluator = f"[{tmp_path / 'own.py'}:seen]"
    words = [
        "train.bf16=true", "train.learning_rate=1e-30", "eval.before=true", f"eval.evaluators={evaluator}",
        f"eval.during_training={evaluator}", "train.eval_steps=1", "train.save_steps=1", "export=none",
    ]  # fmt: skip
    short_run(recipe, tmp_path / "run", *quick, *words, steps=1)
    before, during_training, after = [line["seen"] for line in metrics(tmp_path / "run") if "seen" in line]
    assert before == after and during_training == pytest.approx(before, rel=1e-5)


@pytest.fixture(scope="module")
def stopped(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that stops early, and its words: of a model that is published with an image tower, every weight trained.

    The loss falls from step to step, so that the first evaluation has the greatest and two more end the training.
    """
    folder = tmp_path_factory.mktemp("stopped")
    words = [
        *quick, f"model.model_name_or_path={save('gemma3', folder / 'model')}", "train.save_steps=2",
        "train.save_total_limit=null", "train.eval_steps=2", "train.metric_for_best_model=held_out_loss",
        "train.greater_is_better=true", "train.early_stopping_patience=2", "export.dtype=float32",
        "train.logging_steps=50",
    ]  # fmt: skip
    short_run("full_sft", folder / "run", *words, steps=10)
    return folder / "run", words


@pytest.mark.slow
def test_early_stop(stopped: tuple[Path, list[str]]) -> None:
    folder, _ = stopped
    found = json.loads((folder / "result.json").read_text("utf-8"))
    assert found["status"] == "finished" and found["metrics"]["stopped_early"] is True
    assert found["metrics"]["steps"] == 6 and found["metrics"]["best"]["step"] == 2
    assert [line["step"] for line in metrics(folder) if "loss" in line] == [
        1,
        2,
        4,
        6,
    ]  # and wherever the best may be saved
    assert "Training stopped early, after 6 of 10 steps" in (folder / "report.md").read_text("utf-8")


@pytest.mark.slow
def test_a_resumed_run_ends_the_same(stopped: tuple[Path, list[str]], tmp_path: Path) -> None:
    """In a folder that was moved, killed after the early stop: it goes on from step 4, stops at 6 and takes step 2.

    Transformers would look for the best in the old folder, count the patience anew, train on after a stop, and not
    find the weights of a language part by the names that it saves them under.
    """
    folder, words = stopped
    weights = Path("export", "merged", "model.safetensors")
    begun = tmp_path / "begun"
    shutil.copytree(folder, begun)
    aside = folder / "checkpoints"
    aside = aside.rename(aside.with_name("aside"))
    try:
        (begun / "result.json").write_text('{"status": "interrupted"}', encoding="utf-8")
        shutil.rmtree(begun / "export")
        result = short_run("full_sft", begun, *words, steps=10)
    finally:
        aside.rename(folder / "checkpoints")
    whole = json.loads((folder / "result.json").read_text("utf-8"))["metrics"]
    assert result.metrics["best"] == whole["best"] and result.metrics["steps"] == whole["steps"] == 6
    assert file_digest(begun / weights) == file_digest(folder / weights)
    shutil.rmtree(begun / "checkpoints" / "step-2")
    (begun / "result.json").write_text('{"status": "interrupted"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"the best step so far was 2, and in .*step-2 digests.json is missing"):
        short_run("full_sft", begun, *words, steps=10)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_not_passed_over(stopped: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Transformers goes on in silence with the weights that were there."""
    folder, words = stopped
    shutil.copytree(folder, tmp_path / "begun")
    (tmp_path / "begun" / "result.json").write_text('{"status": "interrupted"}', encoding="utf-8")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "begun" / "checkpoints" / "step-4" / "model.safetensors"
    save_file({f"language_model.{k}": v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    seal(file.parent)
    with pytest.raises(
        RunError, match=r"the checkpoint doesn't fit the model: \d+ weights, for example language_model"
    ):
        step = tmp_path / "begun" / "checkpoints" / "step-4"
        short_run("full_sft", tmp_path / "begun", *words, f"train.resume_from_checkpoint={step}", steps=10)


@pytest.mark.slow
def test_what_is_no_number_is_never_the_best(quick: list[str], tmp_path: Path) -> None:
    """Nor what could not be measured: training goes on, and the result names both."""
    evaluator = scripted(tmp_path, math.nan, 2, "no memory", 1)
    words = best_words(evaluator, "train.eval_steps=1", "export=none")
    result = short_run("lora_sft", tmp_path / "run", *quick, *words, steps=4)
    assert result.status == "finished" and result.metrics["best"] == {"step": 2, "metric": "peak", "value": 2.0}
    assert result.failures == {
        f"step 3: {evaluator}": "own.py:9: ValueError: no memory.",
        "step 1: peak": "it is nan, so this step can't be the best.",
        "step 3: peak": "the evaluation did not give it, so this step can't be the best.",
    }


@pytest.mark.slow
def test_without_any_number_the_last_step_is_kept(quick: list[str], tmp_path: Path) -> None:
    words = best_words(scripted(tmp_path, math.nan, math.inf), "train.eval_steps=1", "export=none")
    result = short_run("lora_sft", tmp_path / "run", *quick, *words, steps=2)
    assert "best" not in result.metrics and set(result.failures) == {"step 1: peak", "step 2: peak"}
    assert "the weights are those of the last step" in (tmp_path / "run" / "report.md").read_text("utf-8")


@pytest.mark.slow
def test_a_figure_that_nothing_gives(quick: list[str], tmp_path: Path) -> None:
    words = best_words(scripted(tmp_path, 1, figure="peaks"), "export=none")
    message = r"metric_for_best_model=peak: the evaluation at step 2 gave no such metric; it gave: peaks\. Did you mean"
    with pytest.raises(RunError, match=message):
        short_run("lora_sft", tmp_path / "run", *quick, *words, steps=4)
    assert json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["status"] == "failed"


@pytest.mark.slow
def test_an_evaluator_that_fails(quick: list[str], tmp_path: Path) -> None:
    """The others go on, and so does training."""
    evaluator = scripted(tmp_path, "no such unit", 1)
    words = ["train.eval_steps=2", f"eval.during_training=[{evaluator},held_out_loss]", "export=none"]
    result = short_run("lora_sft", tmp_path / "run", *quick, *words, steps=4)
    stored = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert stored["status"] == "finished"
    assert stored["failures"] == result.failures == {f"step 2: {evaluator}": "own.py:9: ValueError: no such unit."}
    assert [line["step"] for line in metrics(tmp_path / "run") if "held_out_loss" in line] == [2, 4]
    assert [line["peak"] for line in metrics(tmp_path / "run") if "peak" in line] == [1]


@pytest.mark.slow
def test_an_evaluator_that_fails_on_the_command_line(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluator = scripted(tmp_path, "no such unit")
    words = [
        "recipe=lora_sft", "model.dtype=float32", "tracker=none", *quick, "train.max_steps=1", "train.eval_steps=1",
        f"eval.during_training=[{evaluator}]", "export=none", f"output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(words) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    reason = "own.py:9: ValueError: no such unit."
    assert last == f"gemma_tune: {tmp_path / 'run'}: step 1: {evaluator} failed: {reason}"
    assert json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["status"] == "finished"
