"""Norms, gelu and adapted layers in fewer passes, against Transformers, PEFT and bitsandbytes."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from document_models import text_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

from gemma_tune.models.adapters.adapter import _complete, complete_reference
from gemma_tune.models.kernels import gelu
from gemma_tune.models.kernels import training_layers as training_layers_file
from gemma_tune.models.kernels.allocator import keep_freed_memory
from gemma_tune.models.kernels.lora import FUSED_LAYERS, Fused
from gemma_tune.models.kernels.training_layers import FusedNorm, training_layers
from gemma_tune.train.sft import GemmaSFTTrainer

NORMS = [(Gemma3RMSNorm, {}, True), (Gemma4RMSNorm, {}, False), (Gemma4RMSNorm, {"with_scale": False}, False)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outcome(norm: Any, x: torch.Tensor, weight: Any, mixed: bool) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        y = norm(x)
    y.backward(drawn(*x.shape, seed=2).to(y.dtype))
    return [y.detach(), x.grad, *([] if weight is None else [weight.grad])]


@pytest.mark.parametrize(("kind", "options", "adds_one"), NORMS)
def test_norms(kind: Any, options: dict[str, Any], adds_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of heads, whose rows lie in another order in memory, and in blocks of two rows, the last of one."""
    monkeypatch.setattr(training_layers_file, "_BLOCK", 48)
    wide = torch.float32
    for dtype, near, mixed in ((wide, 2e-6, False), (wide, 2e-6, True), (torch.bfloat16, 2**-7, False)):
        theirs = kind(24, **options).to(dtype)
        weight = getattr(theirs, "weight", None)
        if weight is not None:
            weight.data = drawn(24, seed=1).to(dtype)
        x = (3 * drawn(3, 5, 7, 24)).to(dtype).transpose(1, 2)
        expected = outcome(theirs, x, weight, mixed)
        theirs.zero_grad()
        found = outcome(lambda x, w=weight, eps=theirs.eps: FusedNorm.apply(x, w, adds_one, eps), x, weight, mixed)
        assert len(found) == len(expected)
        assert found[0].stride() == x.stride()
        for mine, other in zip(found, expected, strict=True):
            assert mine.dtype == other.dtype
            assert (mine.double() - other.double()).norm() <= near * other.double().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's in float64, in blocks that end within a row, up to where gelu is 0 or the number itself."""
    monkeypatch.setattr(gelu, "_BLOCK", 100)
    near = 5e-7 if dtype == torch.float32 else 2**-8
    numbers = torch.cat([torch.linspace(-12, 12, 600), torch.tensor([0, 1e4, -1e4, 1e10, -1e10, 1e-30])])
    gate = torch.stack([numbers, numbers.flip(0)]).to(dtype)
    up, of_product = drawn(*gate.shape, seed=1).to(dtype), drawn(*gate.shape, seed=2).to(dtype)
    found, expected = [], []
    for outcome, kind, function in (
        (found, dtype, gelu.GatedGelu.apply),
        (expected, torch.float64, lambda g, u: nn.functional.gelu(g, approximate="tanh") * u),
    ):
        inputs = [x.to(kind).T.requires_grad_() for x in (gate, up)]  # not contiguous
        product = function(*inputs)
        outcome += [product, *torch.autograd.grad(product, inputs, of_product.to(kind).T)]
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == dtype and mine.isfinite().all()
        torch.testing.assert_close(mine.double(), other, rtol=4 * near, atol=1e-5)
        small = other.abs() < 100
        assert (mine - other)[small].norm() <= near * other[small].norm()
    with torch.no_grad():
        assert torch.equal(gelu.GatedGelu.apply(gate.T, up.T), found[0])
    frozen = gate.T, up.T.requires_grad_()
    (of_up,) = torch.autograd.grad(gelu.GatedGelu.apply(*frozen), frozen[1], of_product.T)
    assert torch.equal(of_up, found[2])


@pytest.mark.parametrize(("name", "sparse"), [("gemma3_text", 0), ("gemma3n", 1), ("gemma4_e2b", 0)])
def test_feed_forward_blocks_of_each_family(name: str, sparse: int) -> None:
    model = text_model(name)
    blocks = [layer.mlp for layer in model.model.layers]
    x = drawn(2, 9, blocks[0].hidden_size)
    expected = [block(x) for block in blocks]
    with training_layers(model, None, None):
        ours = [block for block in blocks if "forward" in vars(block)]
        assert len(ours) == len(blocks) - sparse
        for block, theirs in zip(blocks, expected, strict=True):
            torch.testing.assert_close(block(x), theirs, rtol=1e-5, atol=1e-6)
    assert not any("forward" in vars(block) for block in blocks)


def four_bit_model() -> Any:
    """Gemma 3 with adapters over 4-bit and, in the last layer, 16-bit weights."""
    model = text_model("gemma3_text", "eager").bfloat16()
    for layer in list(model.model.layers)[:-1]:
        for part, names in ((layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")), (layer.mlp, ("down_proj",))):
            for name in names:
                plain = getattr(part, name)
                packed = Linear4bit(
                    plain.in_features, plain.out_features, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16
                )
                packed.load_state_dict(plain.state_dict())
                setattr(part, name, packed.bfloat16().to("cpu"))
    config = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "o_proj", "down_proj"])
    config._register_custom_module(FUSED_LAYERS)
    torch.manual_seed(3)
    found = get_peft_model(model, config, autocast_adapter_dtype=True)
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return found.train()


def loss_and_gradients(model: Any) -> tuple[float, torch.Tensor]:
    ids = torch.randint(3, 1500, (2, 40), generator=torch.Generator().manual_seed(5))
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_a_whole_model() -> None:
    """The same forward pass, gradients up to the rounding of bfloat16, and nothing is left behind."""
    model = four_bit_model()
    language = model.get_base_model()
    expected, theirs = loss_and_gradients(model)
    layers = [module for module in model.modules() if isinstance(module, Fused)]
    with training_layers(language, None, None):
        found, ours = loss_and_gradients(model)
        kept = [layer for layer in layers if layer._decoded is not None]
        assert 0 < len(kept) < len(layers)
        for layer in kept:
            weight = layer.base_layer.weight
            assert torch.equal(layer._decoded[2], dequantize_4bit(weight.data.view(-1, 1), weight.quant_state))
    assert found == pytest.approx(expected, rel=1e-4)
    assert 0 < (ours - theirs).norm() < 0.01 * theirs.norm()
    assert not any(layer.joins or layer.keeps_decoded or layer._decoded for layer in layers)
    assert loss_and_gradients(model)[0] == expected
    with training_layers(language, None, False):
        assert loss_and_gradients(model)[0] == pytest.approx(expected, rel=1e-4)
        assert not any(layer._decoded for layer in layers)
    with training_layers(language, False, None):
        assert loss_and_gradients(model)[0] == expected


def test_layers_that_are_trained_whole_beside_an_adapter() -> None:
    """PEFT's wrapper is of one class for norms and for others, such as the head of a reward model."""
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["norm", "o_proj"])
    model = get_peft_model(text_model("gemma3_text"), config)
    expected, theirs = loss_and_gradients(model)
    with training_layers(model.get_base_model(), True, True):
        found, ours = loss_and_gradients(model)
    assert found == pytest.approx(expected, rel=1e-6)
    assert 0 < (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_a_copy_for_a_reference_is_exact() -> None:
    """TRL has PEFT copy the adapter of a model that is continued: with norms of its own, rounded to the base's type."""
    model = text_model("gemma3_text").bfloat16()
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"]))
    _complete(model)
    norm = model.get_base_model().model.norm.modules_to_save
    norm["default"].weight.data.fill_(0.7)
    with training_layers(model.get_base_model(), True, None):
        model.add_adapter("ref", model.peft_config["default"])
        norm["ref"].weight.data.copy_(norm["default"].weight)  # as TRL does
        complete_reference(model)
        assert torch.equal(norm["ref"].weight, norm["default"].weight)
        x = drawn(2, 5, model.config.hidden_size)
        with torch.no_grad():
            assert torch.equal(norm["ref"].eval()(x), norm["default"](x))
            norm["ref"].weight.add_(1)
            assert not torch.equal(norm["ref"](x), norm["default"](x))


def test_a_weight_that_changes_is_decoded_again() -> None:
    model = four_bit_model()
    layer = next(m for m in model.modules() if isinstance(m, Fused))
    x = drawn(3, layer.in_features).bfloat16()
    with training_layers(model.get_base_model(), True, True), torch.no_grad():
        before = layer(x)
        layer.base_layer.weight.copy_(layer.base_layer.weight.flip(0))
        after = layer(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, layer(x), rtol=2e-2, atol=2e-2)


def test_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    tried: list[tuple[int, int]] = []

    class Older:  # an earlier version of glibc
        def mallopt(self, name: int, value: int) -> int:
            tried.append((name, value))
            return int(name != -3 or value <= 32 << 20)

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Older())
    assert keep_freed_memory() and tried == [(-3, 1 << 30), (-3, 32 << 20), (-1, 2**31 - 1)]
    for name in ("", "libc"):  # musl, macOS, Windows
        monkeypatch.setattr(platform, "libc_ver", lambda name=name: (name, ""))
        monkeypatch.setattr(ctypes, "CDLL", None)
        assert not keep_freed_memory()


def test_operations_are_those_of_transformers() -> None:
    trainer = object.__new__(GemmaSFTTrainer)
    trainer.model, trainer._ops_of_token = text_model("gemma3_text"), None
    for inputs in ({"input_ids": torch.zeros(2, 5)}, {"input_ids": torch.zeros(7)}, {}):
        assert trainer.floating_point_ops(inputs) == transformers.Trainer.floating_point_ops(trainer, inputs)
