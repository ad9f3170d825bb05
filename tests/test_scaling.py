"""docs/scaling.md holds what benchmarks/scaling_model.py calculates, and that is what a dry run says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError
from gemma_tune.models.estimate.memory import estimate
from gemma_tune.models.estimate.size import published_size

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_model", ROOT / "benchmarks" / "scaling_model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_one_table_as_calculated(program: ModuleType) -> None:
    asked = program.options().parse_args(["--gpus", "8", "--long-models"])
    found = program.tables(asked)
    assert found.keys() == {"assumed", "8 GPUs", "long"}
    assert found["8 GPUs"] in PAGE and found["assumed"] in PAGE


@pytest.mark.slow
def test_the_page_is_as_calculated(program: ModuleType) -> None:
    found = program.tables(program.options().parse_args([]))
    assert set(re.findall(r"<!-- scaling_model: (.*?) -->", PAGE)) == found.keys()
    assert program.placed_in(PAGE, found) == PAGE


def test_a_step_by_hand(program: ModuleType) -> None:
    """LoRA of 27B under DDP on 8 machines: 2N operations forward, again, and backward; then the adapter's gradients."""
    a = program.options().parse_args(
        ["--tflops", "1000", "--utilization", "0.5", "--nvlink", "100", "--overlap", "0.5"]
    )
    cfg = program.configuration("LoRA", a.model, a.rank)
    cfg.train.max_length = 4096
    size = published_size(a.model)
    assert size is not None
    adapter = 4.0 * size.lora_parameters(16)
    found: dict[str, Any] = program.step(program.placed(cfg, 64, 8, "ddp"), size, a, 10.0)
    assert found["computing"] == pytest.approx(6 * size.computed_parameters * 4096 / 500e12)
    assert found["sent"] == found["network"] == 2 * 63 / 64 * adapter
    assert found["sending"] == pytest.approx(found["sent"] / 10e9)  # slower than 100 GB/s inside
    assert found["step"] == pytest.approx(found["computing"] + found["sending"] / 2)
    assert found["memory"] == estimate(program.placed(cfg, 64, 8, "ddp"), size, False, 4096, on_gpu=True)["total"]
    inside = program.step(program.placed(cfg, 8, 8, "ddp"), size, a, 10.0)
    assert inside["network"] == 0.0 and inside["sending"] == pytest.approx(2 * 7 / 8 * adapter / 100e9)


def test_what_is_refused_has_no_figure(program: ModuleType) -> None:
    a = program.options().parse_args([])
    cfg = program.configuration("QLoRA", a.model, a.rank)
    size = published_size(a.model)
    assert size and program.step(program.placed(cfg, 8, 8, "fsdp2"), size, a, 10.0) is None


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("lora_sft", ["parallel=zero2"], r"DeepSpeed's ZeRO is not supported, since nothing here could test it.*fsdp2"),
        ("lora_sft", ["parallel=zero3"], r"DeepSpeed's ZeRO is not supported"),
        ("lora_sft", ["parallel=ulysses"], r"needs CUDA, and the same number of key-value heads.*docs/scaling\.md"),
        ("lora_sft", ["parallel=context_parallel"], r"drops the attention mask and knows no sliding windows.*32k"),
        ("qlora_sft", ["parallel=fsdp2"], r"4-bit base.*bitsandbytes issue 1945.*Two ways out: parallel=ddp.*lora_sft"),
        ("grpo", ["parallel=fsdp2"], r"can't write completions with sharded weights; take parallel=ddp, or .*use_vllm"),
        ("qat", ["parallel=fsdp2"], r"whole matrices before and after training; take parallel=ddp"),
    ],
)  # fmt: skip
def test_what_the_page_says_is_refused(recipe: str, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_config(recipe, [*words, "launch.num_processes=2"])
    section = PAGE.split("## What is refused, and why")[1]
    assert all(word in section for word in words)
