"""Channel grids and activations of 8 bit: the numbers of Gemma's phone format, held to Transformers' own code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grid_models import ROWS, TINY
from int4_models import build
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.integrations.gemma_quant import apply_srq

from gemma_tune.chat import Rendered
from gemma_tune.config import QuantConfig
from gemma_tune.errors import UserError
from gemma_tune.quant.activations import activation_scales, quantize, round_activation
from gemma_tune.quant.channels import channel_plan
from gemma_tune.quant.grid import GRIDS, NotOnGrid
from gemma_tune.quant.layers import off_grid, put_on_grid

CALIBRATED = [Rendered(row, row) for row in ROWS]


def weights() -> torch.Tensor:
    found = torch.randn(64, 1536, generator=torch.Generator().manual_seed(0))
    found[1], found[2, 5] = 0, 40.0
    return found


@pytest.mark.parametrize(("bits", "codes", "error"), [(8, (-127, 127), 0.02), (4, (-8, 7), 0.13), (2, (-2, 1), 0.42)])
def test_rows_have_one_scale_and_fit_every_type(bits: int, codes: tuple[int, int], error: float) -> None:
    """What is decoded in bfloat16 and in float32 is the same, as the served model computes in its own type."""
    grid, weight = GRIDS[f"int{bits}_channel"], weights()
    found = grid.encode(weight)
    assert found.scales.shape == (64, 1) and (found.scales[torch.arange(64) != 1] > 0).all()
    assert codes[0] <= found.codes.min() < codes[0] / 2 and codes[1] / 2 < found.codes.max() <= codes[1]
    decoded = grid.decode(found)
    assert torch.equal(decoded, grid.rounded(weight)) and not decoded[1].any()
    assert torch.equal((found.codes.bfloat16() * found.scales.bfloat16()).float(), decoded)
    rest = torch.arange(64) > 2
    assert ((decoded - weight)[rest].norm() / weight[rest].norm()) < error
    exact = weight.double().abs()
    usual = exact.mean(1, keepdim=True) * {4: 0.5, 2: 1.4}.get(bits, torch.inf)
    wanted = torch.minimum(exact.amax(1, keepdim=True) / (2 ** (bits - 1) - 1), usual)
    ratio = (found.scales.double() / wanted)[torch.arange(64) != 1]
    assert ((ratio > 0.9999) & (ratio < (2 if bits == 8 else 1 + 2**-4))).all()  # rounded up


def test_the_order_of_a_row_changes_no_scale() -> None:
    """A sum in another order would: exporters encode other parts of a tensor than training does."""
    weight, grid = weights(), GRIDS["int4_channel"]
    mixed = weight[:, torch.randperm(1536, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(grid.encode(weight).scales, grid.encode(mixed).scales)
    assert all(
        torch.equal(grid.encode(weight[n : n + 1]).codes, grid.encode(weight).codes[n : n + 1]) for n in range(4)
    )


def test_what_no_row_can_hold() -> None:
    with pytest.raises(NotOnGrid, match="its width, 6, is not a multiple of 4"):
        GRIDS["int2_channel"].encode(torch.zeros(2, 6))
    with pytest.raises(NotOnGrid, match="NaN or infinity"):
        GRIDS["int4_channel"].encode(torch.tensor([[1.0, torch.nan]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_rounded_as_in_the_served_model(dtype: torch.dtype) -> None:
    """To the bit; the gradient goes through what isn't clipped."""
    x = (torch.randn(500, generator=torch.Generator().manual_seed(0)) * 5).to(dtype).requires_grad_()
    for scale in (0.0341796875, 0.0, 1.0):
        assert torch.equal(round_activation(x, scale), apply_srq(x, torch.tensor(scale)))
    round_activation(x, 0.0341796875).sum().backward()
    assert x.grad is not None
    clipped = x.detach().abs() > 128.5 * 0.0341796875
    assert clipped.any() and not x.grad[clipped].any() and (x.grad[x.abs() < 4.3] == 1).all()


def tiny(**chosen: Any) -> tuple[Any, Any]:
    quant = QuantConfig(grid="int4_channel", **chosen)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).train()
    plan = channel_plan(model, quant)
    quantize(model, plan, quant, CALIBRATED)
    return model, plan


def test_a_step_trains_through_weights_and_activations() -> None:
    """A layer computes what Transformers' own function gives by hand, and every weight gets a gradient."""
    model, plan = tiny(embedding="int8_channel", int2_modules=[r"layers\.[45]\.mlp"], int8_modules=["v_proj"])
    assert {grid.name for grid in plan.grids.values()} == {"int8_channel", "int4_channel", "int2_channel"}
    scales = activation_scales(model)
    assert len(scales) == 42 and all(scale.input > 0 and scale.output > 0 for scale in scales.values())
    x = torch.randn(3, 256)
    for name in ("model.layers.4.mlp.up_proj", "model.layers.0.self_attn.v_proj"):
        layer, (given, gives) = model.get_submodule(name), scales[f"{name}.weight"]
        weight = plan.grids[f"{name}.weight"].rounded(layer.weight)
        by_hand = apply_srq(functional.linear(apply_srq(x, torch.tensor(given)), weight), torch.tensor(gives))
        assert torch.equal(layer(x), by_hand)
    model(input_ids=torch.tensor(ROWS), labels=torch.tensor(ROWS)).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_off_the_grid_nothing_is_rounded() -> None:
    ids = torch.tensor(ROWS)
    whole = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    model, _ = tiny(embedding="int8_channel")
    model.eval()
    with torch.no_grad():
        expected, rounded = whole(input_ids=ids).logits, model(input_ids=ids).logits
        with off_grid(model):
            assert torch.equal(model(input_ids=ids).logits, expected)
    assert (rounded - expected).abs().max() > 0.1
    without, _ = tiny(embedding="int8_channel", calibration_samples=0)
    assert activation_scales(without) == {}


def test_scales_lose_least() -> None:
    """Clipping what is rare loses less than giving the largest magnitude the highest code, and is chosen then."""
    ids, given = torch.tensor(ROWS), dict[str, torch.Tensor]()
    model, plan = tiny(calibration_samples=4)
    scales = activation_scales(model)
    again = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    put_on_grid(again, plan)  # without rounded activations, as they were calibrated
    for name in scales:
        layer = again.get_submodule(name.removesuffix(".weight"))
        layer.register_forward_hook(lambda _, args, output, name=name: given.update({name: args[0]}))
    with torch.no_grad():
        again(input_ids=ids)
    clipped = 0
    for name, x in given.items():
        most = x.abs().max().item() / 127
        lost, of_largest = ((round_activation(x, s) - x).square().sum() for s in (scales[name].input, most))
        assert lost <= of_largest * 1.02 and scales[name].input <= most * 1.01, name
        clipped += scales[name].input < 0.9 * most
    assert clipped > 0


def test_patterns_that_match_nothing_and_blocks_are_refused() -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with pytest.raises(UserError, match=r"quant.int2_modules: no layer's name has 'experts'; names are like model\."):
        channel_plan(model, QuantConfig(grid="int4_channel", int2_modules=["experts"]))
    with pytest.raises(UserError, match=r"embed_tokens.weight is on the grid q8_0, in blocks; choose int8_channel"):
        channel_plan(model, QuantConfig(grid="int4_channel", embedding="q8_0"))


def test_bits_that_are_set_twice_are_refused() -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    twice = QuantConfig(grid="int4_channel", int2_modules=["mlp"], int8_modules=[r"layers\.0\."])
    with pytest.raises(
        UserError, match=r"int8_modules names model\.layers\.0\.mlp\.\w+, whose bits are set by quant.int2_modules"
    ):
        channel_plan(model, twice)
    both = QuantConfig(grid="int4_channel", embedding="int8_channel", int2_modules=["embed"])
    with pytest.raises(
        UserError, match=r"whose bits are set by quant.embedding, too; .* set quant.embedding=int2_channel"
    ):
        channel_plan(model, both)
    channel_plan(model, QuantConfig(grid="int4_channel", int2_modules=["mlp", "embed", "up_proj"]))


def test_experts_stay_in_16_bit() -> None:
    """Which the format stores densely: rounding them would save no byte. The bytes of a folder: test_int4_sizes.py."""
    model, _ = build("gemma4_26b")
    plan = channel_plan(model, QuantConfig(grid="int4_channel", embedding="int4_channel"))
    experts = {name: kept for name, kept in plan.kept.items() if "experts." in name and "scale" not in name}
    assert len(experts) >= 2 and {*experts.values()} == {"16 bit"} and not plan.has_experts
