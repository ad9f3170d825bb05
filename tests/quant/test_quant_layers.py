"""Layers on the grid: what they compute, what they share, and that the adapter is inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from gemma_tune import UserError
from gemma_tune.quant.grid import GRIDS, Grid
from gemma_tune.quant.layers import (
    GridEmbedding,
    GridLinear,
    GridLora,
    forget_rounded,
    grid_layers,
    off_grid,
    put_on_grid,
    rounded_once,
)
from gemma_tune.quant.plan import plan_of
from gemma_tune.run.paths import ASSETS

IDS = torch.tensor([[2, 100, 200, 300, 400, 500]])
PROJECTIONS = 42  # six layers of seven


def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float32).eval()


def on_grid(embedding: str | None = "q4_0") -> Any:
    found = model()
    put_on_grid(found, plan_of(found, "q4_0", embedding))
    return found


def logits(m: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = m(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("embedding", [None, "q8_0", "q4_0"])
def test_the_forward_is_that_of_the_rounded_weights(embedding: str | None) -> None:
    """Against plain Transformers with decode(encode(w)) written into its weights: to the bit."""
    plain, ours = model(), on_grid(embedding)
    plan = plan_of(plain, "q4_0", embedding)
    assert len(plan.grids) == PROJECTIONS + (embedding is not None)
    with torch.no_grad():
        for name, grid in plan.grids.items():
            weight = plain.get_parameter(name)
            weight.copy_(grid.decode(grid.encode(weight)))
    assert torch.equal(logits(plain), logits(ours))
    assert plain.lm_head.weight is plain.model.embed_tokens.weight


def test_off_the_grid_it_is_the_model() -> None:
    ours = on_grid()
    with off_grid(ours):
        assert torch.equal(logits(ours), logits(model()))
    assert not torch.equal(logits(ours), logits(model()))


def test_a_changed_weight_is_seen() -> None:
    """In evaluation a layer is rounded once; not when its weight has changed since."""
    ours = on_grid()
    first = logits(ours)
    with torch.no_grad():
        ours.model.layers[2].mlp.up_proj.weight.add_(0.1)
    assert not torch.equal(first, logits(ours))


def test_head_and_embedding_stay_one() -> None:
    ours = on_grid().train()
    assert isinstance(ours.model.embed_tokens, GridEmbedding) and isinstance(ours.lm_head, GridLinear)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert len(grid_layers(ours)) == PROJECTIONS + 1
    alone, shared = [], []
    for found, sharing in ((alone, False), (shared, True)):
        ours.zero_grad()
        if sharing:
            with rounded_once(ours):
                ours(input_ids=IDS, labels=IDS).loss.backward()
        else:
            ours(input_ids=IDS, labels=IDS).loss.backward()
        found += [p.grad.clone() for p in ours.parameters()]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(alone, shared, strict=True))
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in alone)


def adapted(rank: int = 4) -> Any:
    base = model()
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    config._register_custom_module({nn.Linear: GridLora})
    found = get_peft_model(base, config)
    put_on_grid(found, plan_of_base())
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    return found


def plan_of_base() -> Any:
    return plan_of(model(), "q4_0", None)


def test_the_adapter_is_inside_the_quantizer() -> None:
    """round(W + s·B·A), by plain Transformers with that sum rounded into its weights; not round(W) + s·B·A."""
    ours, plain = adapted(), model()
    grid = GRIDS["q4_0"]
    with torch.no_grad():
        for name in plan_of_base().grids:
            layer = ours.get_base_model().get_submodule(name.removesuffix(".weight"))
            weight = plain.get_parameter(name).clone()
            if isinstance(layer, GridLora):
                weight += 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            plain.get_parameter(name).copy_(grid.decode(grid.encode(weight)))
    assert torch.allclose(logits(ours), logits(plain), rtol=0, atol=2e-4)
    agree = (grid_layers(ours)["model.layers.0.self_attn.q_proj.weight"].forward_weight(torch.zeros(1))
             == plain.model.layers[0].self_attn.q_proj.weight).float().mean()  # fmt: skip
    assert agree > 0.999


def test_what_is_trained_of_an_adapter() -> None:
    ours = adapted().train()
    ours(input_ids=IDS, labels=IDS).loss.backward()
    trained = {n for n, p in ours.named_parameters() if p.grad is not None}
    assert len(trained) == 2 * 12 and all("lora_" in n for n in trained)
    assert len(grid_layers(ours)) == PROJECTIONS


def test_gradients_of_an_adapter() -> None:
    """Those that autograd finds through the whole sum; and in bfloat16 the same within its rounding."""
    layer = grid_layers(adapted().train())["model.layers.0.self_attn.q_proj.weight"]
    assert isinstance(layer, GridLora)
    found = []
    for way in ("ours", "autograd", "autocast"):
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(3), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            by_hand = functional.linear(x, layer.grid.fake_quantize(layer.float_weight()))
            y = by_hand if way == "autograd" else layer(x)
        seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(4))
        wanted = (x, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        found.append([y, *torch.autograd.grad(y, wanted, seed.to(y.dtype))])
    ours, reference, narrow = found
    assert torch.equal(ours[0], reference[0]) and narrow[0].dtype == torch.bfloat16
    for a, b, c in zip(ours, reference, narrow, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())
        assert a.norm() > 0 and (c.float() - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("kind", ["full", "adapter", "bfloat16"])
def test_weights_are_rounded_once_for_several_micro_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of two micro-batches are those of rounding in each, to the bit; then changed weights are rounded."""
    rounded, whole = [], Grid.rounded
    monkeypatch.setattr(Grid, "rounded", lambda grid, weight: rounded.append(1) or whole(grid, weight))
    ours = adapted() if kind == "adapter" else on_grid()
    base, counts, found = ours.get_base_model() if kind == "adapter" else ours, [], []
    for in_step in (False, True):
        ours.zero_grad()
        rounded.clear()
        for ids in (IDS, IDS.flip(1)):
            with rounded_once(base, in_step), torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
                ours(input_ids=ids, labels=ids).loss.backward()
        counts.append(len(rounded))
        found.append([p.grad for p in ours.parameters() if p.grad is not None])
    assert counts == [2 * len(grid_layers(ours)), len(grid_layers(ours))]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and found[0][0].norm() > 0
    forget_rounded(base)
    for parameter in ours.parameters():
        parameter.data = parameter.data.mul_(1.01)  # as some optimizers do, uncounted
    with rounded_once(base, in_step=True):
        ours(input_ids=IDS)
    assert len(rounded) == 2 * len(grid_layers(ours))


def test_a_width_that_is_no_multiple_of_the_block() -> None:
    found = model()
    found.model.layers[1].mlp.up_proj = nn.Linear(40, 8, bias=False)
    with pytest.raises(UserError, match=r"model.layers.1.mlp.up_proj.weight: its width 40 is not a multiple of 32"):
        plan_of(found, "q4_0", None)


def test_a_tensor_that_nobody_planned() -> None:
    found = model()
    found.model.layers[1].extra = nn.Linear(32, 32, bias=False)
    with pytest.raises(UserError, match=r"layers.1.extra.weight: the int4 plan has no rule for this tensor"):
        plan_of(found, "q4_0", None)


def test_the_plan_in_words() -> None:
    plan = plan_of(model(), "q4_0", "q8_0")
    lines = plan.lines()
    assert any(line.startswith("q4_0: model.layers.self_attn.q_proj.weight (6 × ") for line in lines)
    assert any(line.startswith("q8_0: model.embed_tokens.weight (1 × ") for line in lines)
    assert plan.as_dict()["model.norm.weight"] == "float32"
    bits = sum(n * {"q4_0": 4.5, "q8_0": 8.5, "float32": 32.0}[plan.as_dict()[name]] for name, n in plan.sizes.items())
    assert plan.bits_per_weight == pytest.approx(bits / sum(plan.sizes.values()))
