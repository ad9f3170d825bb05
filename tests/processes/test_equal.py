"""Two processes with 4 rows each are one process with 8: losses, gradients, and weights after 5 steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from every_recipe import write_rows
from runs import assert_equal, started

LR = {"full": "train.learning_rate=1e-3", "lora": "train.learning_rate=1e-2"}
QAT = [LR["full"], "quant.max_kl_samples=3", "export.quality_samples=0", "data.max_train_samples=40"]
CASES = {
    "full_sft": ["full_sft", LR["full"]],
    "lora_sft": ["lora_sft", LR["lora"]],
    "qlora_sft": ["qlora_sft", LR["lora"]],
    "packed": ["lora_sft", LR["lora"], "train.packing=true", "train.max_length=256", "data.max_train_samples=200"],
    "streamed": ["lora_sft", LR["lora"], "data.streaming=true", "data.max_train_samples=null"],
    "grouped": ["lora_sft", LR["lora"], "train.train_sampling_strategy=group_by_length"],
    "by_beginning": ["lora_sft", LR["lora"], "train.train_sampling_strategy=group_by_beginning"],
    "accumulated": ["lora_sft", LR["lora"], "train.gradient_accumulation_steps=2"],
    "dpo": ["dpo", LR["lora"], "adapter=lora", "PAIRS"],
    "reward_model": ["reward_model", LR["full"], "SCORED"],
    "qat_kept": ["qat", *QAT],
    "qat_live": ["qat", *QAT, "quant.teacher=live"],
    "grpo": [
        "grpo", LR["lora"], "adapter=lora", "train.num_generations=4", "train.max_completion_length=12",
        "data.max_train_samples=32",
    ],
    "grpo_one_group": [
        "grpo", LR["lora"], "adapter=lora", "train.num_generations=8", "train.max_completion_length=12",
        "data.max_train_samples=32",
    ],
    "grpo_half": [
        "grpo", LR["lora"], "adapter=lora", "train.num_generations=4", "train.max_completion_length=12",
        "data.max_train_samples=32", "reward=none", "HALF",
    ],
    "adamw": ["lora_sft", "train.optim=adamw_torch", "train.learning_rate=1e-3"],
}  # fmt: skip


def _cases(rows: Path) -> dict[str, list[str]]:
    files = {"PAIRS": write_rows("pairs", rows), "SCORED": write_rows("scored_pairs", rows)}
    files["HALF"] = [f"reward.functions.half={Path(__file__).with_name('half_rewards.py')}:half"]
    return {name: [w for word in words for w in files.get(word, [word])] for name, words in CASES.items()}


def _with_batch(cases: dict[str, list[str]], rows: int) -> dict[str, list[str]]:
    return {n: [*words, f"train.per_device_train_batch_size={rows}"] for n, words in cases.items()}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Path]]:
    """The runs of one process and those of two."""
    folder = tmp_path_factory.mktemp("processes")
    cases = _cases(folder)
    return (
        started(1, _with_batch(cases, 8), folder / "one"),
        started(2, _with_batch(cases, 4), folder / "two"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_times_four_is_eight(name: str, both: Any) -> None:
    assert_equal(name, *(runs[name] for runs in both))


@pytest.mark.slow
def test_the_same_files(both: Any) -> None:
    """Two processes leave what one leaves, but for the random state of each."""

    def files(folder: Path) -> set[str]:
        found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        return {name for name in found if "rng_state" not in name}

    for name in CASES:
        one, two = (runs[name] for runs in both)
        assert files(one) == files(two) or name == "qat_kept", name
        assert json.loads((two / "result.json").read_text("utf-8"))["status"] == "finished"
