"""What an optimizer step sends: against what torch itself sends between two processes, and by hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_models
from transformers import AutoConfig

import gemma_tune
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.models.estimate.memory import estimate
from gemma_tune.models.estimate.size import ModelSize, published_size, size_of
from gemma_tune.models.estimate.traffic import Collective, in_words, traffic

SCRIPT = Path(__file__).with_name("count_traffic.py")
# As torch's dispatcher names them
NAMES = {"all-gather": "_allgather_base_", "reduce-scatter": "_reduce_scatter_base_", "all-reduce": "allreduce_"}
# By its name in small_models: the model's type, the strategy, the adapter's rank, and what else differs
CASES: list[tuple[str, str, str, int, dict[str, bool]]] = [
    ("gemma3_text", "gemma3_text", "ddp", 0, {}),
    ("gemma3_text", "gemma3_text", "ddp", 4, {}),
    ("gemma3_text", "gemma3_text", "fsdp2", 0, {}),
    ("gemma3_text", "gemma3_text", "fsdp2", 0, {"checkpointing": True}),
    ("gemma3_text", "gemma3_text", "fsdp2", 0, {"reshards": False}),
    ("gemma3_text", "gemma3_text", "fsdp2", 4, {"checkpointing": True}),
    ("gemma4_e2b", "gemma4_text", "fsdp2", 0, {"checkpointing": True}),
    ("gemma4_26b", "gemma4_text", "fsdp2", 0, {}),
    ("gemma3n", "gemma3n_text", "fsdp2", 0, {}),
]


def counted(cases: list[dict[str, Any]], processes: int) -> list[dict[str, Any]]:
    """What so many processes have sent and held, as torch counts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), json.dumps(cases)], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def case(name: str, kind: str, strategy: str, lora: int, more: dict[str, Any]) -> dict[str, Any]:
    found = {"kind": kind, "text": small_models.MODELS[name][1], "strategy": strategy, "lora": lora}
    return {**found, "checkpointing": False, "reshards": True, **more}


def configured(strategy: str, lora: int, more: dict[str, Any], *words: str) -> Config:
    recipe, adapter = ("lora_sft", [f"adapter.r={lora}"]) if lora else ("full_sft", [])
    words = (*words, "train.gradient_accumulation_steps=2", "model.dtype=float32", *adapter, f"parallel={strategy}")
    more_words = [] if more.get("reshards", True) else ["parallel.reshard_after_forward=false"]
    return compose_config(recipe, ["model=tiny", "dry_run=true", *words, *more_words])


def assert_the_same(cfg: Config, size: ModelSize, found: dict[str, Any]) -> None:
    """To the padding: FSDP2 rounds the first dimension up to a multiple of the shards."""
    expected = {NAMES[one.kind]: one.size for one in traffic(cfg, size, mixed=False)}
    assert found["sent"] == pytest.approx(expected, rel=0.01)
    parts = estimate(cfg, size, False, 8)
    for part, held in found["held"].items():
        assert parts[part] * 2**30 == pytest.approx(held, rel=0.02), part
    if found["gathered"]:  # of layers that differ two of the largest are counted
        whole = parts["gathered"] * 2**30
        if cfg.adapter.peft_type == "none":  # the gradients before they are reduced
            whole -= 4 * min(size.outer_parameters + 2 * size.layer_parameters, size.parameters)
        assert found["gathered"] <= whole * 1.01 and whole <= 1.05 * found["gathered"]


@pytest.mark.slow
def test_what_torch_sends_and_holds() -> None:
    everything = counted([case(*one) for one in CASES], 2)
    assert len(everything) == len(CASES)
    for (name, kind, strategy, lora, more), found in zip(CASES, everything, strict=True):
        size = size_of(AutoConfig.for_model(kind, **small_models.MODELS[name][1]))
        assert_the_same(configured(strategy, lora, more, "launch.num_processes=2"), size, found)


@pytest.mark.slow
def test_what_torch_sends_between_two_machines_of_two() -> None:
    name, kind = "gemma3_text", "gemma3_text"
    size = size_of(AutoConfig.for_model(kind, **small_models.MODELS[name][1]))
    words = ("launch.num_processes=2", "launch.num_nodes=2")
    everything = counted([case(name, kind, "fsdp2", lora, {"mesh": [2, 2]}) for lora in (0, 4)], 4)
    for lora, found in zip((0, 4), everything, strict=True):
        assert_the_same(configured("fsdp2", lora, {}, *words), size, found)


def of_27b(recipe: str, *words: str) -> list[Collective]:
    cfg = compose_config(recipe, ["model=gemma3_27b_it", "dry_run=true", *words])
    size = published_size(cfg.model.model_name_or_path)
    assert size is not None
    return traffic(cfg, size, cfg.model.dtype == "float32")


def test_one_process_sends_nothing() -> None:
    assert of_27b("lora_sft") == []


def test_adapters_under_ddp() -> None:
    """Rank 16 on every linear layer of 27B: 113.5 million numbers of 4 bytes, reduced once in a step."""
    (one,) = of_27b("lora_sft", "launch.num_processes=8", "train.gradient_accumulation_steps=16")
    assert one.size == 4 * 16 * 62 * (2 * (5376 + 4096) + 2 * (5376 + 2048) + 3 * (5376 + 21_504))
    assert one.sent == 2 * 7 / 8 * one.size and one.network == 0 and one.within == 8 * one.sent


def test_every_weight_in_a_machine_and_over_the_network() -> None:
    """54 GB of weights in bfloat16: whole machines of 8 gather them inside, 64 shards over the network."""
    machines = ["launch.num_processes=8", "launch.num_nodes=8", "parallel=fsdp2"]
    size = published_size("google/gemma-3-27b-it")
    assert size is not None
    layers = size.parameters - size.outer_parameters
    gather, scatter, reduce = of_27b("full_sft", *machines)
    assert gather.size == 2 * (2 * layers + size.outer_parameters) and scatter.size == 2 * size.parameters
    assert gather.sent == 7 / 8 * gather.size and gather.network == scatter.network == 0.0
    # Each process reduces its eighth with the seven that hold the same eighth on the other machines
    assert reduce.sent == 2 * 7 / 8 * scatter.size / 8 and reduce.network == 8 * reduce.sent and reduce.within == 0.0
    flat = of_27b("full_sft", *machines, "parallel.shard_within_node=false")
    assert [one.kind for one in flat] == ["all-gather", "reduce-scatter"]
    assert [one.sent for one in flat] == [63 / 64 * gather.size, 63 / 64 * scatter.size]
    # One of the 8 processes of a machine sends to the next machine, 7 inside
    assert [one.network for one in flat] == [one.sent for one in flat]
    assert [one.within for one in flat] == [7 * one.sent for one in flat]


def test_an_accumulated_step_gathers_each_time() -> None:
    once = of_27b("lora_sft", "launch.num_processes=8", "parallel=fsdp2")
    four = of_27b("lora_sft", "launch.num_processes=8", "parallel=fsdp2", "train.gradient_accumulation_steps=4")
    assert [one.size for one in four] == [4 * one.size for one in once]


def test_a_dry_run_says_what_each_process_does(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=sample", "tracker=none", "dry_run=true", "launch.num_processes=4"]
    result = gemma_tune.run("lora_sft", words)
    out, metrics = capsys.readouterr().out, result.metrics["processes"]
    cfg = compose_config("lora_sft", words)
    (one,) = metrics["traffic"]
    assert one["sent"] == 2 * 3 / 4 * one["size"] and one["network"] == 0 and metrics["shards"] == 1
    assert one["size"] == pytest.approx(result.metrics["memory_gib"]["gradients"] * 2**30)
    assert metrics["operations"] > 0 and cfg.launch.num_processes == 4
    assert "Processes: 4, ddp: 4 copies of the model, a whole one on each." in out
    assert re.search(r"each process computes 0\.\d+ TFLOP for at most [\d,]+ tokens, and sends [\d.]+ MB by", out)
    assert "MiB on each process (weights" in out and "all inside the machine." in out
    gemma_tune.run("lora_sft", words[:-1])
    assert "Processes:" not in capsys.readouterr().out


def test_in_words() -> None:
    found = [Collective("all-gather", "weights", 80e9, 8), Collective("all-reduce", "gradients", 1e9, 2, 2, 8)]
    assert in_words(found) == (
        "71.0 GB (70.0 GB by all-gather of weights, 1.0 GB by all-reduce of gradients); 8.0 GB leave each machine over "
        "the network"
    )
