"""What a layer keeps for its backward pass: the widths of the estimate against the tensors that autograd saves."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import small_models
import torch
import transformers
from peft import LoraConfig, get_peft_model
from test_memory import KINDS, composed
from transformers import AutoConfig

from gemma_tune.models.estimate.activations import cast_weights, of_layer
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.kernels.lora import FUSED_LAYERS
from gemma_tune.models.kernels.training_layers import training_layers

WIDE = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64, "global_head_dim": 128}
WIDE |= {"hidden_size_per_layer_input": 64, "moe_intermediate_size": 128}
TOKENS = 64


def language(name: str) -> tuple[Any, Any]:
    """A model of few layers of the family, wide enough for scores and adapters to be small beside its activations."""
    small = small_models.MODELS[name][1]
    text = AutoConfig.for_model(KINDS[name], **small | {key: n for key, n in WIDE.items() if small.get(key)})
    family = FAMILIES[KINDS[name]]
    text._attn_implementation = family.attention[0]
    torch.manual_seed(0)
    return getattr(transformers, family.language_class)(text).train(), text


def saved(model: Any, base: Any) -> float:
    """Bytes that the layers save of a forward pass, without weights: storages, each once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}
    at: list[int] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept.setdefault(place, tensor)
        return tensor

    for module in (base.model.layers[0], base.model.norm):
        module.register_forward_pre_hook(lambda *_: at.append(len(kept)))
    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        base.model(input_ids=torch.randint(3, 500, (1, TOKENS)), use_cache=False)
    return sum(t.untyped_storage().nbytes() for t in [*kept.values()][slice(*at)])


@pytest.mark.parametrize("name", KINDS)
def test_adapters_over_bfloat16(name: str) -> None:
    model, text = language(name)
    config = LoraConfig(r=1, target_modules=[*FAMILIES[KINDS[name]].linear_layers])
    config._register_custom_module(FUSED_LAYERS)
    adapted = get_peft_model(model.bfloat16(), config)
    found = saved(adapted, adapted.get_base_model()) / TOKENS / text.num_hidden_layers
    cfg, size = composed("lora_sft", "gemma3_1b_it")[0], size_of(text)
    scores = size.num_attention_heads * TOKENS * (2 if size.attention == "sdpa" else 10)
    counted = of_layer(cfg, size, 2.0, 2.0, size.attention) + (scores if size.attention == "eager" else 0)
    assert counted == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("recipe", ["full_sft", "lora_sft"])
@pytest.mark.parametrize("name", ["gemma3_text", "gemma4_e2b"])
def test_norms_of_ours_keep_their_input_in_its_type(name: str, recipe: str) -> None:
    model, text = language(name)
    whole, number = model, 4.0
    if recipe == "lora_sft":
        config = LoraConfig(r=1, target_modules=[*FAMILIES[KINDS[name]].linear_layers])
        config._register_custom_module(FUSED_LAYERS)
        whole, number = get_peft_model(model.bfloat16(), config), 2.0
    base = whole.get_base_model() if recipe == "lora_sft" else whole
    with training_layers(base, fused=True, decoded=None):
        found = saved(whole, base) / TOKENS / text.num_hidden_layers
    cfg, size = composed(recipe, "gemma3_1b_it")[0], size_of(text)
    assert of_layer(cfg, size, number, number, "sdpa", fused=True) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("name", KINDS)
def test_all_weights_in_float32(name: str) -> None:
    model, text = language(name)
    found = saved(model, model) / TOKENS / text.num_hidden_layers
    cfg, size = composed("full_sft", "gemma3_1b_it")[0], size_of(text)
    scores = size.num_attention_heads * TOKENS * 12 if size.attention == "eager" else 0
    assert of_layer(cfg, size, 4.0, 4.0, size.attention) + scores == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("recipe", ["full_sft", "lora_sft"])
def test_mixed_precision(recipe: str) -> None:
    """Copies of weights and inputs in bfloat16, beside a residual stream in float32."""
    model, text = language("gemma3_text")
    whole: Any = model
    if recipe == "lora_sft":
        config = LoraConfig(r=1, target_modules=[*FAMILIES["gemma3_text"].linear_layers])
        config._register_custom_module(FUSED_LAYERS)
        whole = get_peft_model(model, config)
    base = whole.get_base_model() if recipe == "lora_sft" else whole
    with torch.autocast("cpu", torch.bfloat16):
        found = saved(whole, base)
    cfg, size = composed(recipe, "gemma3_1b_it")[0], size_of(text)
    of_layers = partial(of_layer, cfg, size, 2.0, 4.0)
    counted = of_layers("sdpa") * TOKENS * text.num_hidden_layers + cast_weights(cfg, size, 2.0, 4.0)
    assert counted == pytest.approx(found, rel=0.1)
