"""The metadata of a GGUF file: shape, attention, rotary embedding, sampling."""

from __future__ import annotations

import math
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType

from gemma_tune.errors import UserError
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.known import no_gguf

# llama.cpp recognises the 27B by its number of layers, and scales its queries by hidden size / heads.
_LAYERS_27B = 62


def add_metadata(writer: GGUFWriter, config: Any, generation: Any) -> None:
    """Writes the shape of the model and the default sampling.

    Args:
        writer: The file's writer.
        config: The language part's (`gemma3_text`).
        generation: The generation config.
    """
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    full, local = (config.rope_parameters[kind] for kind in ("full_attention", "sliding_attention"))
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_rope_freq_base_swa(local["rope_theta"])
    if full["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(_period(config.layer_types))
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if generation.do_sample:
        writer.add_sampling_temp(1.0 if generation.temperature is None else generation.temperature)
        if generation.top_k is not None:
            writer.add_sampling_top_k(generation.top_k)
        if generation.top_p is not None:
            writer.add_sampling_top_p(generation.top_p)


def architecture_of(name: str) -> MODEL_ARCH:
    """The package's own key of an architecture, by llama.cpp's name of it."""
    return next(arch for arch, known in MODEL_ARCH_NAMES.items() if known == name)


def check_config(config: Any) -> None:
    """Raises UserError where llama.cpp doesn't compute what this configuration asks for."""
    if (family := FAMILIES[config.model_type]).gguf is None:
        raise UserError(f"{no_gguf(family)}.")
    large = config.num_hidden_layers == _LAYERS_27B
    width = config.hidden_size // config.num_attention_heads if large else config.head_dim
    full, local = (config.rope_parameters[kind]["rope_type"] for kind in ("full_attention", "sliding_attention"))
    fits = {
        "query_pre_attn_scalar": math.isclose(config.query_pre_attn_scalar, width),
        "hidden_activation": config.hidden_activation == "gelu_pytorch_tanh",
        "attention_bias": not config.attention_bias,
        "attn_logit_softcapping": not config.attn_logit_softcapping,
        "use_bidirectional_attention": not config.use_bidirectional_attention,
        "rope_parameters": full in ("default", "linear") and local == "default",
        "layer_types": _period(config.layer_types) > 1,
    }
    if refused := [f"{key}={getattr(config, key)!r}" for key, ok in fits.items() if not ok]:
        raise UserError(
            f"config.json: llama.cpp can't compute {', '.join(refused)}, so no GGUF file can hold this model; "
            "use export=merged."
        )


def _period(layer_types: list[str]) -> int:
    """N where every N-th layer has full attention and all others sliding; 0 for any other order."""
    full = [i for i, kind in enumerate(layer_types) if kind == "full_attention"]
    period = full[0] + 1 if full else len(layer_types) + 1
    return period if full == list(range(period - 1, len(layer_types), period)) else 0
