"""The metadata of a GGUF file: shape, attention, rotary embedding, sampling, and what llama.cpp can't compute.

What llama.cpp reads, and what it takes for granted: https://github.com/ggml-org/llama.cpp/tree/master/src/models
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType

from gemma_tune.errors import UserError
from gemma_tune.models.family import FAMILIES

# llama.cpp recognises the 27B of Gemma 2 and 3 by its number of layers, and scales its queries by hidden size / heads.
_LAYERS_27B = {"gemma2": 46, "gemma3": 62}
_FULL, _SLIDING = "full_attention", "sliding_attention"
# What llama.cpp has built in for Gemma 3n
_SPARSE_3N, _OWN_KEYS_3N = 10, 20


def add_metadata(writer: GGUFWriter, config: Any, generation: Any) -> None:
    """Writes the shape of the model and the default sampling.

    Args:
        writer: The file's writer.
        config: The language part's.
        generation: The generation config.
    """
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _ARCHITECTURES[FAMILIES[config.model_type].gguf][0](writer, config)
    if cap := getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(cap)
    if suppressed := getattr(generation, "suppress_tokens", None):
        writer.add_array("tokenizer.ggml.suppress_tokens", [int(token) for token in suppressed])
    if generation.do_sample:
        writer.add_sampling_temp(1.0 if generation.temperature is None else generation.temperature)
        if generation.top_k is not None:
            writer.add_sampling_top_k(generation.top_k)
        if generation.top_p is not None:
            writer.add_sampling_top_p(generation.top_p)


def _one_head_size(writer: GGUFWriter, config: Any) -> None:
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def _gemma(writer: GGUFWriter, config: Any) -> None:
    _one_head_size(writer, config)
    writer.add_feed_forward_length(config.intermediate_size)


def _gemma2(writer: GGUFWriter, config: Any) -> None:
    _gemma(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _two_rotary_bases(writer: GGUFWriter, config: Any) -> None:
    writer.add_rope_freq_base(config.rope_parameters[_FULL]["rope_theta"])
    writer.add_rope_freq_base_swa(config.rope_parameters[_SLIDING]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    _gemma(writer, config)
    _two_rotary_bases(writer, config)
    full = config.rope_parameters[_FULL]
    if full["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    writer.add_sliding_window_pattern(_period(config.layer_types))


def _gemma3n(writer: GGUFWriter, config: Any) -> None:
    _one_head_size(writer, config)
    _two_rotary_bases(writer, config)
    writer.add_feed_forward_length(_as_list(config.intermediate_size, config.num_hidden_layers))
    writer.add_altup_active_idx(config.altup_active_idx)
    writer.add_altup_num_inputs(config.altup_num_inputs)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    normal = torch.distributions.Normal(0.0, 1.0)
    sparsity = torch.tensor(config.activation_sparsity_pattern, dtype=torch.float32)
    writer.add_activation_sparsity_scale(normal.icdf(sparsity).tolist())
    writer.add_sliding_window_pattern([kind == _SLIDING for kind in config.layer_types])


def _gemma4(writer: GGUFWriter, config: Any) -> None:
    layers = [config.per_layer_config[i] for i in range(config.num_hidden_layers)]
    sizes = head_sizes(config)
    _two_rotary_bases(writer, config)
    writer.add_key_length(sizes[_FULL])
    writer.add_value_length(sizes[_FULL])
    writer.add_key_length_swa(sizes[_SLIDING])
    writer.add_value_length_swa(sizes[_SLIDING])
    writer.add_rope_dimension_count(sizes[_FULL])
    writer.add_rope_dimension_count_swa(sizes[_SLIDING])
    writer.add_head_count_kv([layer.num_key_value_heads for layer in layers])
    shared = getattr(config, "num_kv_shared_layers", 0)
    wide = 2 if getattr(config, "use_double_wide_mlp", False) else 1
    own = config.num_hidden_layers - shared
    writer.add_feed_forward_length([config.intermediate_size * (1 if i < own else wide) for i in range(len(layers))])
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(getattr(config, "hidden_size_per_layer_input", 0) or 0)
    writer.add_sliding_window_pattern([kind == _SLIDING for kind in config.layer_types])
    if getattr(config, "enable_moe_block", False):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def head_sizes(config: Any) -> dict[str, int]:
    """Gemma 4's size of a head by the kind of its layer; `config.head_dim` raises where they differ."""
    layers = (config.per_layer_config[i] for i in range(config.num_hidden_layers))
    found = {kind: int(layer.head_dim) for kind, layer in zip(config.layer_types, layers, strict=True)}
    some = next(iter(found.values()))
    return {_FULL: found.get(_FULL, some), _SLIDING: found.get(_SLIDING, some)}


def _as_list(value: Any, count: int) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value] * count


def architecture_of(name: str) -> MODEL_ARCH:
    """The package's own key of an architecture, by llama.cpp's name of it."""
    return next(arch for arch, known in MODEL_ARCH_NAMES.items() if known == name)


def check_config(config: Any) -> None:
    """Raises UserError where llama.cpp doesn't compute what this configuration asks for."""
    activation = "hidden_act" if FAMILIES[config.model_type].gguf == "gemma" else "hidden_activation"
    fits = {
        activation: getattr(config, activation) == "gelu_pytorch_tanh",
        "attention_bias": not getattr(config, "attention_bias", False),
        **_ARCHITECTURES[FAMILIES[config.model_type].gguf][1](config),
    }
    if refused := [f"{key}={getattr(config, key)!r}" for key, ok in fits.items() if not ok]:
        raise UserError(
            f"config.json: llama.cpp can't compute {', '.join(refused)}, so no GGUF file can hold this model; "
            "use export=merged."
        )


def _fits_gemma(config: Any) -> dict[str, bool]:
    rope = config.rope_parameters
    return {"rope_parameters": rope["rope_type"] == "default" and rope["rope_theta"] == 10000.0}


def _scales_by_width(config: Any) -> bool:
    large = config.num_hidden_layers == _LAYERS_27B[FAMILIES[config.model_type].gguf]
    return math.isclose(
        config.query_pre_attn_scalar, config.hidden_size // config.num_attention_heads if large else config.head_dim
    )


def _fits_gemma2(config: Any) -> dict[str, bool]:
    return {
        **_fits_gemma(config),
        "query_pre_attn_scalar": _scales_by_width(config),
        "use_bidirectional_attention": not getattr(config, "use_bidirectional_attention", None),
        "attn_logit_softcapping": bool(config.attn_logit_softcapping),
        "final_logit_softcapping": bool(config.final_logit_softcapping),
        "layer_types": _period(config.layer_types) == 2,
    }


def _fits_gemma3(config: Any) -> dict[str, bool]:
    full, local = (config.rope_parameters[kind]["rope_type"] for kind in (_FULL, _SLIDING))
    return {
        "query_pre_attn_scalar": _scales_by_width(config),
        "attn_logit_softcapping": not config.attn_logit_softcapping,
        "use_bidirectional_attention": not config.use_bidirectional_attention,
        "rope_parameters": full in ("default", "linear") and local == "default",
        "layer_types": _period(config.layer_types) > 1,
    }


def _fits_gemma3n(config: Any) -> dict[str, bool]:
    sparse = list(config.activation_sparsity_pattern or [])
    kinds = (config.rope_parameters[kind]["rope_type"] for kind in (_FULL, _SLIDING))
    return {
        "altup_num_inputs": config.altup_num_inputs == 4,
        "altup_active_idx": config.altup_active_idx == 0,
        "hidden_size_per_layer_input": config.hidden_size_per_layer_input == 256,
        "laurel_rank": config.laurel_rank == 64,
        "activation_sparsity_pattern": sparse == [0.95] * _SPARSE_3N + [0.0] * (len(sparse) - _SPARSE_3N),
        "num_kv_shared_layers": config.num_hidden_layers - config.num_kv_shared_layers == _OWN_KEYS_3N,
        "final_logit_softcapping": config.final_logit_softcapping == 30.0,
        "rope_parameters": set(kinds) == {"default"},
        "layer_types": _period(config.layer_types) == 5,
        "intermediate_size": len({*_as_list(config.intermediate_size, 1)}) == 1,
    }


def _turns_as_written(rotary: Any) -> bool:
    """Whether `rope_freqs` and one base say all of a rotary embedding."""
    whole = rotary["rope_type"] == "default" and rotary.get("partial_rotary_factor", 1.0) == 1.0
    return bool(whole or (rotary["rope_type"] == "proportional" and rotary.get("factor", 1.0) == 1.0))


def _fits_gemma4(config: Any) -> dict[str, bool]:
    full, local = (config.rope_parameters[kind] for kind in (_FULL, _SLIDING))
    return {
        # llama.cpp runs the text of both in the same way; images are another matter
        "use_bidirectional_attention": config.use_bidirectional_attention in (None, "vision"),
        "rope_parameters": _turns_as_written(full) and local["rope_type"] == "default",
        "layer_types": {*config.layer_types} == {_FULL, _SLIDING},
    }


_Write: TypeAlias = Callable[[GGUFWriter, Any], None]
_Fits: TypeAlias = Callable[[Any], dict[str, bool]]
# By llama.cpp's name: what writes the metadata of its own, and what the configuration must be by its keys.
_ARCHITECTURES: Mapping[str, tuple[_Write, _Fits]] = {
    "gemma": (_gemma, _fits_gemma),
    "gemma2": (_gemma2, _fits_gemma2),
    "gemma3": (_gemma3, _fits_gemma3),
    "gemma3n": (_gemma3n, _fits_gemma3n),
    "gemma4": (_gemma4, _fits_gemma4),
}


def _period(layer_types: list[str]) -> int:
    """N where every N-th layer has full attention and all others sliding; 0 for any other order."""
    full = [i for i, kind in enumerate(layer_types) if kind == _FULL]
    period = full[0] + 1 if full else len(layer_types) + 1
    return period if full == list(range(period - 1, len(layer_types), period)) else 0
