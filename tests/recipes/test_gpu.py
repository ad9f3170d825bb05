"""What only a GPU can show: bfloat16 QLoRA with paged 8-bit Adam and recomputation, as on one card of a user's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from short_runs import losses, short_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

CARD = ["model.dtype=bfloat16", "train.optim=paged_adamw_8bit", "train.gradient_checkpointing=true"]


@pytest.mark.parametrize("recipe", ["lora_sft", "qlora_sft"])
def test_adapters_on_a_gpu(recipe: str, tmp_path: Path) -> None:
    result = short_run(recipe, tmp_path / "run", *CARD, "train.packing=true", steps=10)
    assert result.headline["after"] < result.headline["before"]
    assert result.metrics["export"]["export_kl"] < 1e-2


def test_full_with_mixed_precision_on_a_gpu(tmp_path: Path) -> None:
    result = short_run("full_sft", tmp_path / "run", steps=10)
    assert result.headline["after"] < result.headline["before"]


def test_gpu_and_cpu_agree_on_the_first_loss(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        words = [f"model.device={device}", "train.bf16=false", "eval=none", "eval.num_samples=0", "export=none"]
        short_run("lora_sft", tmp_path / device, *words, steps=1)
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)
