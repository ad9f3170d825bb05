"""What is quantized and what is trained: layers, counts, and gradients that 4-bit layers let through."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from transformers import AutoModelForCausalLM

from gemma_tune.chat import Rendered
from gemma_tune.cli.compose import compose_config
from gemma_tune.engines.transformers import row_losses
from gemma_tune.models.adapters import adapter as adapters
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
PADS = SimpleNamespace(pad_token_id=0, media=None)  # all of a tokenizer that losses of text need
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def attached(recipe: str, *overrides: str) -> Any:
    """The model of a recipe, ready to be trained."""
    cfg = compose_config(recipe, ["model=tiny", "model.dtype=float32", *overrides])
    source = find_source(cfg.model)
    torch.manual_seed(0)
    return adapters.attach(load_base(cfg.model, source, load_tokenizer(source)), cfg.adapter, source)


def formula(r: int) -> dict[str, int]:
    """Counts from config.json alone: Gemma 3's shapes, in the words of its paper and of LoRA's."""
    c = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    h, m, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    shapes = [(q, h), (kv, h), (kv, h), (h, q), (m, h), (m, h), (h, m)]
    linear = layers * sum(a * b for a, b in shapes)
    norms = layers * (4 * h + 2 * c["head_dim"]) + h
    return {
        "linear": linear,
        "base": linear + norms + c["vocab_size"] * h,
        "lora": layers * sum(r * (a + b) for a, b in shapes),
        "layers": layers * len(shapes),
    }


def test_qlora_layers_and_counts() -> None:
    model = attached("qlora_sft", "adapter.r=8")
    expected = formula(8)
    layers = {n: m for n, m in model.named_modules() if n.endswith(tuple(f"{p}.base_layer" for p in PROJECTIONS))}
    assert len(layers) == expected["layers"]
    assert all(isinstance(m, bitsandbytes.nn.Linear4bit) for m in layers.values())
    state = next(iter(layers.values())).weight.quant_state
    assert state.quant_type == "nf4" and state.nested
    counts = adapters.count(model)
    assert counts.four_bit == expected["linear"] and counts.four_bit_layers == expected["layers"]
    assert counts.trainable == expected["lora"]
    assert counts.total == expected["base"] + expected["lora"]
    assert counts.adapted_layers == expected["layers"]
    share = f"{expected['linear'] / (expected['base'] + expected['lora']):.2%}"
    assert f"4-bit: {expected['linear']:,} weights ({share}) in {expected['layers']} layers" in counts.line()
    assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" not in n)


def test_full_counts() -> None:
    counts = adapters.count(attached("full_sft"))
    assert counts.total == counts.trainable == formula(8)["base"]
    assert counts.four_bit == counts.adapted_layers == 0


def test_head_stays_tied() -> None:
    for recipe in ("full_sft", "lora_sft", "qlora_sft"):
        model = attached(recipe)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_evaluation_leaves_the_gradients_of_four_bit_layers() -> None:
    """An evaluation first, then a backward pass: gradients equal those over the dequantized weights.

    Fails on CPUs with AVX512-BF16 where bitsandbytes may repack the weights for inference (see models/load.py).
    """
    model = attached("qlora_sft", "adapter.r=4")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    row = Rendered(list(range(2, 40)), list(range(2, 40)))
    row_losses(model, [row], PADS, 1, "")

    plain = attached("lora_sft", "adapter.r=4")
    with torch.no_grad():
        for (name, target), (_, source) in zip(plain.named_modules(), model.named_modules(), strict=True):
            if isinstance(source, bitsandbytes.nn.Linear4bit):
                weight = bitsandbytes.functional.dequantize_4bit(source.weight.data, source.weight.quant_state)
                target.weight.copy_(weight)
            elif "lora_" in name and hasattr(source, "weight"):
                target.weight.copy_(source.weight)
    found = []
    for m in (model, plain):
        m.train()
        ids = torch.tensor([row.input_ids])
        m(input_ids=ids, labels=ids).loss.backward()
        found.append({n: p.grad for n, p in m.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 2 * 42
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-5), name


def test_evaluation_leaves_mode_and_random_state() -> None:
    model = attached("full_sft").train()
    state = torch.get_rng_state()
    row_losses(model, [Rendered([2, 5, 6], [-100, 5, 6])], PADS, 1, "")
    assert model.training and torch.equal(state, torch.get_rng_state())


def test_held_out_loss_against_transformers() -> None:
    """Rows of several lengths, padded together, equal Transformers' own loss row by row."""
    model = attached("full_sft")
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    rows = [Rendered(ids, [-100] * 3 + ids[3:]) for ids in ([2, *range(20, 20 + n)] for n in (9, 30, 17))]
    wanted = []
    for row in rows:
        with torch.no_grad():
            out = plain(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]))
        wanted.append(out.loss.item() * row.trained_tokens)
    assert row_losses(model, rows, PADS, 2, "") == pytest.approx(wanted, rel=1e-6)


def test_loftq_starts_nearer_to_the_checkpoint() -> None:
    """In every layer s·B·A makes up for a part of what 4-bit rounding lost, and no rank-r update could do more."""
    model = attached("qlora_sft", "adapter=loftq", "adapter.r=16", "adapter.lora_alpha=32")
    original = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    checked = 0
    for name, layer in model.get_base_model().named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        weight = original.get_submodule(name).weight.detach()
        rounded = bitsandbytes.functional.dequantize_4bit(
            layer.base_layer.weight.data, layer.base_layer.weight.quant_state
        )
        best = torch.linalg.svdvals(weight - rounded)[16:].norm()
        left = (weight - rounded - 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach().norm()
        assert left == pytest.approx(best.item(), rel=1e-4) and left < 0.95 * (weight - rounded).norm()
        checked += 1
    assert checked == 42
