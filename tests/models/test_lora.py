"""The joined LoRA layer against PEFT's own, and against the formula in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import nn

from gemma_tune.models.four_bit_weights import weight_of
from gemma_tune.models.kernels import lora

BATCH, IN, OUT, RANK = (3, 5), 64, 96, 8


def model_with(base: nn.Linear, joined: bool, **options: Any) -> Any:
    """One adapted layer, with an adapter as after training."""
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=24, target_modules=["0"], **options)
    if joined:
        config._register_custom_module(lora.FUSED_LAYERS)
    model = get_peft_model(nn.Sequential(copy.deepcopy(base)), config)
    torch.manual_seed(1)
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight, std=0.1)
    return model


def autocast(model: Any, x: torch.Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)


def outcome(forward: Any, x: torch.Tensor, model: Any = None) -> dict[str, torch.Tensor]:
    """The output, and the gradients of its product with fixed numbers."""
    model = forward if model is None else model
    x = x.clone().requires_grad_()
    y = forward(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype))
    layer = model.base_model.model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return {"y": y.detach(), "x": x.grad, "A": a.grad, "B": b.grad}


def by_formula(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """y = xWᵀ + s·xAᵀBᵀ and its gradients, in float64, by torch's own differentiation."""
    layer = model.base_model.model[0]
    weight = weight_of(layer.get_base_layer()).double()
    x = x.double().requires_grad_()
    a = layer.lora_A["default"].weight.detach().double().requires_grad_()
    b = layer.lora_B["default"].weight.detach().double().requires_grad_()
    y = x @ weight.T + 3 * (x @ a.T @ b.T)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).bfloat16().double())
    return {"y": y.detach(), "x": x.grad, "A": a.grad, "B": b.grad}


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(*BATCH, IN, generator=torch.Generator().manual_seed(2))


def base_of(kind: str) -> nn.Linear:
    torch.manual_seed(4)
    dense = nn.Linear(IN, OUT, bias=False)
    if kind == "4 bit":
        packed = Linear4bit(IN, OUT, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
        packed.load_state_dict(dense.state_dict())
        return packed.to("cpu")
    return dense if kind == "float32" else dense.bfloat16()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_float32_is_pefts(x: torch.Tensor, dropout: float) -> None:
    found = []
    for joined in (True, False):
        model = model_with(base_of("float32"), joined, lora_dropout=dropout)
        torch.manual_seed(5)
        found.append(outcome(model, x))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bfloat16", "4 bit"])
def test_bfloat16_is_as_near_to_the_formula_as_its_type_allows(x: torch.Tensor, kind: str) -> None:
    model = model_with(base_of(kind), joined=True)
    assert type(model.base_model.model[0]).__module__ == lora.__name__
    x = x.bfloat16()
    found, exact = outcome(model, x), by_formula(model, x)
    assert found["y"].dtype == found["x"].dtype == torch.bfloat16
    assert found["A"].dtype == found["B"].dtype == torch.float32
    for name, value in found.items():
        assert error(value, exact[name]) < 2**-7, name


@pytest.mark.parametrize("kind", ["float32", "4 bit"])
def test_under_autocast(x: torch.Tensor, kind: str) -> None:
    """Products in bfloat16 over float32 weights, as `train.bf16` asks for; the forward alone is under it."""
    model = model_with(base_of(kind), joined=True)
    found = outcome(lambda given: autocast(model, given), x, model)
    exact = by_formula(model, x)
    assert found["x"].dtype == found["A"].dtype == torch.float32
    for name, value in found.items():
        assert error(value, exact[name]) < 2**-6, name


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_lora_is_pefts(x: torch.Tensor, options: dict[str, Any]) -> None:
    found = [outcome(model_with(base_of("float32"), joined, **options), x) for joined in (True, False)]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_switched_off_and_merged(x: torch.Tensor) -> None:
    base = base_of("float32")
    model = model_with(base, joined=True)
    with torch.no_grad():
        with_adapter = model(x)
        with model.disable_adapter():
            torch.testing.assert_close(model(x), base(x))
        model.merge_adapter()
        torch.testing.assert_close(model(x), with_adapter, rtol=1e-5, atol=1e-5)
