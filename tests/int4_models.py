"""Small models of every family that llama.cpp computes, of the real classes with random weights, for the grid."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from forms_at_hand import tokenizer_of
from small_models import MODELS

from gemma_tune.chat import FORMS
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.unwrap import stored_tensors

_SLIDING, _FULL = "sliding_attention", "full_attention"
# What llama.cpp has built in, where the small models have something else
_AS_IN_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "gemma3n": {
        "num_hidden_layers": 22, "layer_types": ([_SLIDING] * 4 + [_FULL]) * 4 + [_SLIDING] * 2,
        "intermediate_size": [96] * 22, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 256,
        "laurel_rank": 64, "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12,
    },
    "gemma4_e2b": {"hidden_size_per_layer_input": 32},
}  # fmt: skip
_CLASSES = {
    "gemma1": ("GemmaConfig", "GemmaForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "gemma3n": ("Gemma3nTextConfig", "Gemma3nForCausalLM"),
    "gemma4_e2b": ("Gemma4TextConfig", "Gemma4ForCausalLM"),
    "gemma4_26b": ("Gemma4TextConfig", "Gemma4ForCausalLM"),
    "gemma4_31b": ("Gemma4TextConfig", "Gemma4ForCausalLM"),
    "gemma4_12b": ("Gemma4UnifiedTextConfig", "Gemma4UnifiedForCausalLM"),
}
FAMILY_MODELS = tuple(_CLASSES)


def build(name: str, **sizes: Any) -> tuple[Any, Any]:
    """The language part in float32, with weights large enough for its parts to matter, and its tokenizer.

    Args:
        name: One of `FAMILY_MODELS`.
        sizes: Other values of its configuration.
    """
    config_class, model_class = _CLASSES[name]
    values = {**MODELS[name][1], **_AS_IN_LLAMA_CPP.get(name, {}), **sizes}
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**values)).float().eval()
    if name == "gemma2":
        model.set_attn_implementation("eager")
    torch.manual_seed(1)
    with torch.no_grad():
        for own, tensor in stored_tensors(model):
            if own.endswith(("scale", "layer_scalar")):
                tensor.copy_(1 + 0.1 * torch.randn_like(tensor))
            elif tensor.ndim > 1:
                tensor.normal_(0.0, 0.08)
            elif "norm" in own:
                tensor.add_(0.1 * torch.randn_like(tensor))
    model.generation_config.eos_token_id = [1]
    return model, tokenizer_of(FORMS[FAMILIES[model.config.model_type].form].name)


def rows(count: int = 8, length: int = 64) -> list[list[int]]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(3)
    return [[2, *torch.randint(20, 1500, (length - 1,), generator=generator).tolist()] for _ in range(count)]
