"""Short runs of every training recipe: ten steps each, on a few short rows, with everything that the recipe leaves.

Tests share one finished run of each (fixture `finished` of conftest.py); `benchmarks/artifact_digests.py` makes them
in two checkouts and compares what they leave, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from short_runs import short_run

import gemma_tune

STEPS = 10
NUMBERS = range(20, 44)


@dataclass(frozen=True)
class ShortRun:
    """A recipe and what is set beside `short_runs.SHORT`; `rows` names the file of rows below, none is the sample."""

    recipe: str
    words: tuple[str, ...] = ()
    rows: str | None = None


_CHECKPOINTS = ("train.save_steps=5", "train.save_total_limit=null")  # of runs that tests resume
_DPO = ("eval.evaluators=[preference]", "train.max_grad_norm=0")
_REWARD_MODEL = ("eval.evaluators=[]", "eval.num_samples=0", "export.dtype=float32")
_RL = (
    "train.bf16=false", "train.per_device_train_batch_size=8", "train.num_generations=4", "train.learning_rate=1e-4",
    "train.max_completion_length=12", "data.max_train_samples=32", "data.max_eval_samples=null",
    "eval.evaluators=[rewards]", "eval.num_samples=4", "eval.max_new_tokens=12", "eval.max_samples=8",
    "export.dtype=float32",
)  # fmt: skip
_RL_VARIANT = (*_RL, "eval.evaluators=[]", "eval.num_samples=0", "train.save_steps=20")
_QAT = (
    "quant.max_kl_samples=3", "eval.num_samples=0", "data.max_eval_samples=null", "data.max_train_samples=null",
    "export.quality_samples=4",
)  # fmt: skip

SHORT_RUNS = {
    "full_sft": ShortRun("full_sft"),
    "lora_sft": ShortRun("lora_sft", _CHECKPOINTS),
    "qlora_sft": ShortRun("qlora_sft"),
    "dpo, full": ShortRun("dpo", _DPO, "pairs"),
    "dpo, lora": ShortRun("dpo", (*_DPO, *_CHECKPOINTS, "adapter=lora"), "pairs"),
    "dpo, qlora": ShortRun("dpo", (*_DPO, "adapter=lora", "model.load_in_4bit=true"), "pairs"),
    "kto, full": ShortRun("kto", (*_DPO, "train.per_device_train_batch_size=4"), "labelled"),
    "kto, lora": ShortRun(
        "kto", (*_DPO, *_CHECKPOINTS, "adapter=lora", "train.desirable_weight=1.5", "train.undesirable_weight=0.5"),
        "pairs",
    ),
    "reward_model, full": ShortRun("reward_model", _REWARD_MODEL, "scored_pairs"),
    "reward_model, lora": ShortRun(
        "reward_model", (*_REWARD_MODEL, *_CHECKPOINTS, "adapter=lora", "train.learning_rate=5e-3"), "scored_pairs"
    ),
    "grpo": ShortRun("grpo", (*_RL, "reward=math_format", "train.eval_steps=5", "eval.during_training=[rewards]")),
    "grpo, lora": ShortRun("grpo", (*_RL_VARIANT, *_CHECKPOINTS, "adapter=lora", "train.beta=0.04")),
    "dapo": ShortRun("dapo", _RL_VARIANT),
    "dr_grpo": ShortRun("dr_grpo", _RL_VARIANT),
    "gspo": ShortRun("gspo", _RL_VARIANT),
    "rloo": ShortRun("rloo", _RL_VARIANT),
    "qat, full": ShortRun("qat", (*_QAT, "quant.embedding=q4_0"), "answers"),
    "qat, lora": ShortRun("qat", (*_QAT, *_CHECKPOINTS, "adapter=lora", "quant.embedding=none"), "answers"),
    "tune_to_int4": ShortRun(
        "tune_to_int4",
        (*_QAT, "adapter.r=4", "quant.stage2.max_steps=10", "quant.stage2.per_device_train_batch_size=2",
         "quant.stage2.learning_rate=1e-3", "export=gguf", "eval.evaluators=[held_out_loss,answers]",
         "eval.max_samples=4", "eval.max_new_tokens=24"),
        "answers",
    ),
}  # fmt: skip

# Variants of a run that `make test` has: tests of them are for `make test-slow`
SLOW_RUNS = {
    "full_sft", "dpo, full", "dpo, qlora", "reward_model, lora", "grpo, lora", "dapo", "dr_grpo", "gspo", "rloo",
    "qat, full", "qat, lora", "tune_to_int4", "kto, full",
}  # fmt: skip


def slow_marked(names: Iterable[str], prefix: str = "") -> list[Any]:
    """Parameters of a test: `prefix` and each name are a run of SHORT_RUNS, and those of SLOW_RUNS are marked slow."""
    return [pytest.param(n, marks=pytest.mark.slow) if f"{prefix}{n}" in SLOW_RUNS else n for n in names]


def write_rows(kind: str, folder: Path) -> list[str]:
    """Writes 24 short rows of a kind into `folder`.

    Returns:
        The words of the command line that read them: 16 rows to train on, 8 validation rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}.jsonl"
    if kind == "pairs":  # the better answer is the right one
        rows = [
            {"prompt": f"What is {n} plus 5?", "chosen": f"That makes {n + 5}.", "rejected": f"I say {n} and no more."}
            for n in NUMBERS
        ]
    elif kind == "scored_pairs":  # the better answer ends with a number
        rows = [
            {"prompt": f"What is {n} plus 5?", "chosen": f"That makes {n + 5}.", "rejected": "It is yellow and cool."}
            for n in NUMBERS
        ]
    elif kind == "labelled":  # right answers and wrong ones, in turn
        rows = [
            {"prompt": f"What is {n} plus 5?", "completion": f"That makes {n + 4 + n % 2}.", "label": n % 2 == 1}
            for n in NUMBERS
        ]
    else:
        rows = [{"prompt": f"What is {n} plus 5?", "completion": f"That makes {n + 5}."} for n in NUMBERS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = [f"data.train_file={file}", "data.validation_split_percentage=33"]
    if kind == "answers":
        return ["data=prompt_completion", *words, f"data.test_files.test={file}"]
    if kind == "labelled":
        return ["data=unpaired_preference", *words]
    return ["data=preference", *words]


def make_short_run(name: str, folder: Path) -> gemma_tune.RunResult:
    """Makes the run of SHORT_RUNS with this name in `folder`; its rows are written beside it."""
    return short_run(SHORT_RUNS[name].recipe, folder, *short_words(name, folder), steps=STEPS, picture=True)


def short_words(name: str, folder: Path) -> list[str]:
    """The words with which `make_short_run` made the run in `folder`, for a run that goes on with it."""
    made = SHORT_RUNS[name]
    return [*(write_rows(made.rows, folder.with_name(f"{folder.name}.rows")) if made.rows else []), *made.words]
