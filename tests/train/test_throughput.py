"""Tokens a second, the share of the ceiling, and the profile of some steps."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from small_models import build
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma4ForCausalLM

from gemma_tune.cli.compose import compose_config
from gemma_tune.models.estimate.flops import Operations, measured_ceiling, model_operations
from gemma_tune.models.estimate.size import size_of
from gemma_tune.train.profiling import Profile
from gemma_tune.train.throughput import Throughput


def test_real_tokens_and_time_without_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A padded batch, one without a mask and one of preferences; 10 s, of which 6 s are no training."""
    clock = [0.0]
    monkeypatch.setattr("gemma_tune.train.throughput.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr("gemma_tune.train.throughput.measured_ceiling", lambda device, dtype: 1000.0)
    one = Throughput(Accelerator(cpu=True), Operations(10.0, 100.0), torch.float32)
    one.on_train_begin(None, None, None)
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    one.saw({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(ids % 6 < 3, -100)})  # 10, and 6
    one.saw({"input_ids": ids, "labels": ids})  # 12, and 10: nothing predicts the first of a row
    one.saw({"input_ids": ids, "attention_mask": mask, "completion_mask": mask, "labels": [True, False]})  # 10, and 8
    clock[0] = 4.0
    with one.paused():
        clock[0] = 10.0
    expected = {"tokens_per_second": 32 / 4, "trained_tokens_per_second": 24 / 4, "mfu": (320 + 2400) / 4 / 1000}
    assert one.figures() == expected
    one.saw({"input_ids": ids, "labels": ids})
    clock[0] = 12.0
    assert one.figures() == {"tokens_per_second": 6.0, "trained_tokens_per_second": 5.0, "mfu": (120 + 1000) / 2 / 1000}
    assert one.figures() == {}


def test_operations_of_the_model() -> None:
    """As torch counts the products of a forward pass of Gemma 4 with layers that share keys and values."""
    whole = build("gemma4_e2b")
    model = Gemma4ForCausalLM(whole.config.get_text_config())
    size = size_of(whole.config)
    model.set_attn_implementation("eager")  # so that its products are torch.bmm
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.randint(3, 100, (1, 16)), use_cache=False)
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if op != torch.ops.aten.bmm)
    for recipe, passes in (("full_sft", 6), ("lora_sft", 4)):
        found = model_operations(compose_config(recipe, ["model=gemma3_1b_it"]), size)
        assert sum(found) * 16 == counted * passes / 2, recipe
        assert found.of_trained == passes * (size.shared_layer_parameters + size.vocab_size * size.hidden_size)
    scores = model_operations(compose_config("reward_model", ["model=gemma3_1b_it"]), size)
    assert scores.of_trained == 6 * size.shared_layer_parameters > 0


def test_the_ceiling_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    begun = time.perf_counter()
    found = measured_ceiling(torch.device("cpu"), torch.float32)
    assert 1e9 < found < 1e14 and time.perf_counter() - begun < 20
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("first", "last", "begin", "steps"), [(7, 30, 10, 10), (0, 2, 1, 1), (0, 6, 3, 3)])
def test_profile(first: int, last: int, begin: int, steps: int, tmp_path: Path) -> None:
    """Ten steps after three, of a resumed run too, and fewer of a short one; each multiplies once."""
    profile = Profile(tmp_path / "profile")
    state = SimpleNamespace(global_step=first, max_steps=last, is_world_process_zero=True)
    profile.on_train_begin(None, state, None)
    for _ in range(first, last):
        profile.on_step_begin(None, state, None)
        torch.mm(torch.ones(8, 8), torch.ones(8, 8))
        state.global_step += 1
        profile.on_step_end(None, state, None)
    profile.on_train_end(None, state, None)
    assert {p.name for p in tmp_path.iterdir()} == {"profile"}
    with gzip.open(tmp_path / "profile" / "trace.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("aten::mm") == steps
    assert "aten::mm" in (tmp_path / "profile" / "operations.txt").read_text("utf-8")
    assert (
        f"step {begin + 1}{f' to {begin + steps}' * (steps > 1)} in" in profile.lines[0]
        and "ui.perfetto.dev" in profile.lines[0]
    )
