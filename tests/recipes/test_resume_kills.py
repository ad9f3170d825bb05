"""Runs that are killed or stopped where it is hardest, twice, against the run that nobody disturbs.

A process kills itself at a call of a function: between two batches, in a half-written file of the teacher's targets, in
the middle of an export, in each stage of `recipe=tune_to_int4`. The same command goes on, to the same weights and
metrics.
"""

from __future__ import annotations

import importlib.util
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from every_recipe import SHORT_RUNS, write_rows
from resumed import figures, killed, lines, sent, weights
from short_runs import short_run

from gemma_tune.run.stopping import Stopped

pytestmark = pytest.mark.slow
STEPS = 8
PASS = "gemma_tune.train.base.GemmaTrainer.training_step"
At = tuple[str, int]


@dataclass(frozen=True)
class Case:
    """A short run, and where it dies, one time after the other.

    Attributes:
        run: Its name in SHORT_RUNS.
        kills: Function and number of the call at which the run, then the resumed one, is killed.
        words: What is set beside.
    """

    run: str
    kills: Sequence[At]
    words: Sequence[str] = ()


_FEW = "data.max_train_samples=null"
_STREAM = ("data.streaming=true", "data.shuffle_buffer_size=4", _FEW)
_INT4 = "export.formats=[gguf,w4a16,merged]"
_TARGETS = "gemma_tune.train.teacher_cache.TeacherCache._encoded"
# Forward passes: four steps of GRPO share a generation, or two of two passes each
_FOUR = ("every 4", "train.num_iterations=2", "train.steps_per_generation=2")
_PASSES = ("every 2", "train.gradient_accumulation_steps=2", "train.steps_per_generation=4")
CASES = {
    "mixed": Case("lora_sft", [(PASS, 4), (PASS, 3)], ("mixed",)),
    "mixed, repeated, packed": Case(
        "full_sft", [(PASS, 5), (PASS, 2)],
        ("mixed", "data.stopping_strategy=all_exhausted", "train.packing=true", "train.max_length=128"),
    ),
    "mixed and streamed": Case(
        "lora_sft", [(PASS, 8), (PASS, 5)],
        ("mixed", *_STREAM, "data.stopping_strategy=all_exhausted", "train.gradient_accumulation_steps=2"),
    ),
    "a stream that repeats": Case("lora_sft", [(PASS, 4), (PASS, 4)], ("five", *_STREAM)),
    "a stream that repeats, packed": Case(
        "qlora_sft", [(PASS, 6), (PASS, 2)], ("five", *_STREAM, "train.packing=true", "train.max_length=128")
    ),
    "a stream that repeats, evaluated": Case(
        "full_sft", [(PASS, 3), (PASS, 5)],
        ("five", *_STREAM, "train.eval_steps=2", "train.metric_for_best_model=held_out_loss", "train.logging_steps=3"),
    ),
    "half a teacher": Case("qat, lora", [(_TARGETS, 3), (_TARGETS, 2), (PASS, 5)]),
    "half a teacher, full": Case("qat, full", [(_TARGETS, 2), (_TARGETS, 3), (PASS, 1)]),
    "merged, half written": Case(
        "lora_sft", [("gemma_tune.export.transformers_folder._fill", 1), ("gemma_tune.export.verify.verify_merged", 1)]
    ),
    "merged, full": Case(
        "full_sft",
        [("gemma_tune.export.transformers_folder.write_weights", 1), ("gemma_tune.steps.session.write_report", 1)],
    ),
    "the adapter, half written": Case(
        "lora_sft",
        [
            ("gemma_tune.models.adapters.adapter_files.AdapterSaver.save", 1),
            ("gemma_tune.steps.session.write_report", 1),
        ],
        ("train.save_steps=null",),
    ),
    "int4 files, half written": Case(
        "qat, lora", [("gemma_tune.export.gguf._bits", 20), ("gemma_tune.export.w4a16._parts", 5)], (_INT4,)
    ),
    "int4 files, full": Case(
        "qat, full",
        [("gemma_tune.export.transformers_folder._fill", 1), ("gemma_tune.export.formats.llama_lines", 1)], (_INT4,),
    ),
    "reward model": Case(
        "reward_model, lora", [(PASS, 4), ("gemma_tune.models.adapters.adapter_files.AdapterSaver.save", 1)]
    ),
    "four steps a generation": Case("grpo, lora", [(PASS, 7), (PASS, 2), (PASS, 4)], _FOUR),
    "four steps a generation, full": Case("rloo", [(PASS, 5), (PASS, 1)], _FOUR),
    "two steps of two passes": Case("grpo", [(PASS, 6), (PASS, 3)], _PASSES),
    "two epochs of generations": Case(
        "dapo", [(PASS, 6), (PASS, 2)], ("every 2", "train.steps_per_generation=2", "six")
    ),
    "sequences, resumed in the last generation": Case("gspo", [(PASS, 8), (PASS, 2)], ("data.max_train_samples=32",)),
}  # fmt: skip


def _messages(folder: Path, name: str, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{name}: what is {n} plus {n}?", "completion": f"That is {2 * n}."} for n in range(count)]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _words(case: Case, folder: Path) -> list[str]:
    """The words of the command line; writes the rows that they read."""
    run, asked = SHORT_RUNS[case.run], list(case.words)
    every = 4 if run.recipe == "gspo" else next((int(word[-1]) for word in asked if word.startswith("every ")), 1)
    words = [*run.words, f"train.save_steps={every}", "train.save_total_limit=null", "eval.num_samples=0"]
    words += ["export=merged", "export.dtype=float32"]
    words += ["eval.before=false"] if run.recipe != "qat" else []
    words += write_rows(run.rows, folder) if run.rows else ["data.max_train_samples=32"]
    held_out = f"data.validation_file={_messages(folder, 'held_out', 4)}"
    if "mixed" in asked:
        files = [f"data.train_files.{name}={_messages(folder, name, n)}" for name, n in (("a", 5), ("b", 17))]
        words += ["data=prompt_completion", "data.train_file=", *files, "data.weights={a: 1, b: 2}", held_out]
    if "five" in asked:
        words += ["data=prompt_completion", f"data.train_file={_messages(folder, 'five', 5)}", held_out]
    if "six" in asked:
        words += ["data.max_train_samples=6"]
    return [*words, *(word for word in asked if "=" in word)]


def same(folder: Path, whole: Path) -> None:
    """The two runs have left the same."""
    assert weights(whole) and weights(folder) == weights(whole)
    assert lines(folder) == lines(whole)
    assert figures(folder) == figures(whole)


@pytest.mark.parametrize("name", CASES)
def test_killed_again_and_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    recipe, words = SHORT_RUNS[case.run].recipe, _words(case, tmp_path / "rows")
    # A file of targets for each batch of the teacher, and small batches
    monkeypatch.setattr("gemma_tune.train.teacher_cache._FILE_SECONDS", 0)
    monkeypatch.setattr("gemma_tune.train.teacher_cache._BATCH_TOKENS", 100)
    for at, call in case.kills:
        killed(recipe, tmp_path / "run", *words, steps=STEPS, at=at, call=call)
    short_run(recipe, tmp_path / "run", *words, steps=STEPS)
    short_run(recipe, tmp_path / "whole", *words, steps=STEPS)
    same(tmp_path / "run", tmp_path / "whole")
    assert not [*tmp_path.glob("run/**/*.part"), *tmp_path.glob("run/**/*.partial"), *tmp_path.glob("run/.replaced")]


# The forward pass at which a signal comes, and the step whose checkpoint is kept
STOPS: dict[str, tuple[str, int, int, Sequence[str]]] = {
    "sft": ("lora_sft", 4, 2, ("train.gradient_accumulation_steps=2", "train.logging_steps=3")),
    "full": ("full_sft", 8, 8, ()),
    "a stream that repeats": ("full_sft", 4, 4, ("five", *_STREAM)),
    "dpo": ("dpo, lora", 3, 3, ("train.logging_steps=3",)),
    "kto": ("kto, lora", 3, 3, ()),
    "reward model": ("reward_model, lora", 3, 3, ()),
    "qat": ("qat, lora", 5, 5, ("train.logging_steps=3",)),
    "rloo": ("rloo", 3, 3, ()),
    "grpo, in a generation": ("grpo, lora", 2, 4, _FOUR),
    "grpo, two passes a step": ("grpo, lora", 5, 4, _PASSES),
}


@pytest.mark.parametrize("name", STOPS)
def test_stopped_by_a_signal(name: str, tmp_path: Path) -> None:
    """The step under way, or the generation, is done; no checkpoint is kept but the last one."""
    run, call, step, more = STOPS[name]
    recipe, words = SHORT_RUNS[run].recipe, _words(Case(run, (), more), tmp_path / "rows")
    words += ["train.save_steps=null"]
    with sent(signal.SIGTERM, PASS, call), pytest.raises(Stopped) as stopped:
        short_run(recipe, tmp_path / "run", *words, steps=STEPS)
    assert stopped.value.code == 143
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step}"]
    if step < STEPS - 4:
        with sent(signal.SIGTERM, PASS, 1), pytest.raises(Stopped):  # and the resumed one
            short_run(recipe, tmp_path / "run", *words, steps=STEPS)
    short_run(recipe, tmp_path / "run", *words, steps=STEPS)
    short_run(recipe, tmp_path / "whole", *words, steps=STEPS)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole") and weights(tmp_path / "whole")
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    if "train.logging_steps=3" not in more:  # a checkpoint has a line of its own
        assert lines(tmp_path / "run") == lines(tmp_path / "whole")


# Where `recipe=tune_to_int4` is killed: at its first training, between its stages, and so on to the last file
STAGES: dict[str, Sequence[At]] = {
    "the first training": [(PASS, 4), (PASS, 2)],
    "the first export": [("gemma_tune.export.transformers_folder._fill", 1), (PASS, 5)],
    "between the trainings": [("gemma_tune.recipes.qat.load_float32", 1), ("gemma_tune.recipes.qat.read", 1)],
    "the teacher": [(_TARGETS, 2), (PASS, 3)],
    "the second training": [(PASS, 14), (PASS, 3)],
    "the second export": [("gemma_tune.export.gguf._bits", 20), ("gemma_tune.export.formats.llama_lines", 1)],
    "measuring the file": [
        ("gemma_tune.recipes.tune_to_int4.of_gguf", 1), ("gemma_tune.recipes.tune_to_int4.compare_models", 1),
        ("gemma_tune.recipes.tune_to_int4.show", 1),
    ],
}  # fmt: skip


def _int4_words(folder: Path) -> list[str]:
    run = SHORT_RUNS["tune_to_int4"]
    more = ["train.save_steps=1", "train.save_total_limit=null", "export.dtype=float32"]
    return [*run.words, *write_rows("answers", folder), *more, "eval.max_samples=2"]


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of `recipe=tune_to_int4` that nobody disturbs, and its words."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed")
    folder = tmp_path_factory.mktemp("int4")
    words = _int4_words(folder / "rows")
    short_run("tune_to_int4", folder / "whole", *words, steps=STEPS)
    return folder / "whole", words


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_of_tune_to_int4(name: str, int4: tuple[Path, list[str]], tmp_path: Path, monkeypatch: Any) -> None:
    whole, words = int4
    monkeypatch.setattr("gemma_tune.train.teacher_cache._BATCH_TOKENS", 100)
    for at, call in STAGES[name]:
        killed("tune_to_int4", tmp_path / "run", *words, steps=STEPS, at=at, call=call)
    short_run("tune_to_int4", tmp_path / "run", *words, steps=STEPS)
    same(tmp_path / "run", whole)
