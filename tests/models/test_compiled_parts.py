"""Compiled norms and feed-forward blocks against plain ones: loss, gradients, and what stays plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from peft import LoraConfig, get_peft_model
from resumed import lines, stopped_at, weights
from short_runs import losses, short_run
from torch.nn import functional
from transformers import AutoModelForCausalLM

from gemma_tune.models.kernels.compiled_parts import check_compiler, compiled_parts, parts_of
from gemma_tune.models.kernels.lora import FUSED_LAYERS
from gemma_tune.models.kernels.switch import plain_passes
from gemma_tune.models.unwrap import language_part


def adapted(name: str) -> Any:
    """The language part of a small model, with plain LoRA as ours adds it."""
    config = LoraConfig(r=4, target_modules=["q_proj", "gate_proj", "down_proj"], init_lora_weights=False)
    config._register_custom_module(FUSED_LAYERS)
    text = small_models.build(name).config.get_text_config()
    torch.manual_seed(0)
    return get_peft_model(AutoModelForCausalLM.from_config(text).float(), config).train()


def gradients(model: Any, rows: int) -> tuple[float, dict[str, torch.Tensor]]:
    ids = torch.randint(3, 1500, (rows, 24), generator=torch.Generator().manual_seed(rows))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    model.zero_grad()
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_training_alone_is_compiled() -> None:
    """By a backend that computes what it is given as it stands, so that all numbers are equal."""
    model, calls = adapted("gemma3_text"), [0]
    base, ids = language_part(model), torch.arange(5, 12)[None]

    def backend(graph: Any, inputs: Any) -> Any:
        def call(*args: Any) -> Any:
            calls[0] += 1
            return graph.forward(*args)

        return call

    expected = [gradients(model, rows) for rows in (2, 1)]
    names, written = list(model.state_dict()), model.generate(input_ids=ids, max_new_tokens=2, do_sample=False)
    with compiled_parts(base, backend):
        found = [gradients(model, rows) for rows in (2, 1)]
        assert calls[0] == 2 * 4 * 7  # passes, layers, parts
        assert list(model.state_dict()) == names
        assert torch.equal(model.generate(input_ids=ids, max_new_tokens=2, do_sample=False), written)
        with plain_passes(base):
            gradients(model, 2)
        assert calls[0] == 2 * 4 * 7
    for (loss, theirs), (other, ours) in zip(expected, found, strict=True):
        assert loss == other and theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert len(parts_of(base)) == 4 * 7  # each has its own forward pass again


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: fails)
    said = check_compiler(torch.device("cpu"))
    assert said is not None and "(No working C++ compiler found)" in said and "apt install g++" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "gemma3n", "gemma4_e2b", "gemma4_26b"])
def test_every_family(name: str) -> None:
    """With layers that are computed again in the backward pass, too; nothing is left to plain passes."""
    model = adapted(name)
    base = language_part(model)
    expected = [gradients(model, rows) for rows in (2, 1)]
    torch.compiler.reset()
    with compiled_parts(base), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        found = [gradients(model, rows) for rows in (2, 1)]
        base.gradient_checkpointing_enable({"use_reentrant": False})
        found += [gradients(model, rows) for rows in (2, 1)]
    for (loss, theirs), (other, ours) in zip(expected * 2, found, strict=True):
        assert other == pytest.approx(loss, rel=1e-6)
        for tensor, gradient in theirs.items():
            assert (ours[tensor] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, tensor


RUNS = {
    "sft": ["lora_sft", "train.gradient_checkpointing=true"],
    "full": ["full_sft", "train.packing=true", "train.max_length=256"],
    "4 bit": ["qlora_sft"],
    "grpo": [
        "grpo", "adapter=lora", "train.num_generations=4", "train.max_completion_length=12", "train.beta=0.04",
        "train.per_device_train_batch_size=8", "data.max_train_samples=32",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, tmp_path: Path) -> None:
    """The losses of a plain run; resumed in a process that compiles anew it is equal to the bit."""
    recipe, *words = RUNS[name]
    words += [
        "eval=none",
        "eval.num_samples=0",
        "train.bf16=false",
        "train.save_steps=1",
        "train.save_total_limit=null",
    ]
    words += ["export=merged", "export.dtype=float32"]
    short_run(recipe, tmp_path / "plain", *words)
    short_run(recipe, tmp_path / "whole", *words, "train.torch_compile=true")
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5, abs=1e-6)
    stopped_at(tmp_path / "whole", tmp_path / "begun", 1)
    torch.compiler.reset()
    short_run(recipe, tmp_path / "begun", *words, "train.torch_compile=true")
    assert lines(tmp_path / "begun") == lines(tmp_path / "whole")
    assert weights(tmp_path / "begun") == weights(tmp_path / "whole") != {}
