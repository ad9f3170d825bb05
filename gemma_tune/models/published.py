"""The sizes of the published checkpoints, as their config.json give them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Published:
    """What config.json says of one checkpoint, pretrained or instruction-tuned: the two have the same sizes.

    Attributes:
        model_type: Of the language part's configuration.
        text: What that configuration says other than the defaults of its class in Transformers. Token ids are left
            out: they are no sizes, and differ between the pretrained and the instruction-tuned checkpoint.
        tower_parameters: Weights beside the language part: towers for images and audio, and what projects their
            output into the language part.
    """

    model_type: str
    text: Mapping[str, Any]
    tower_parameters: int = 0


# Every sixth layer sees all tokens where nothing else is said; in Gemma 4 E2B it is every fifth.
_EVERY_FIFTH = (["sliding_attention"] * 4 + ["full_attention"]) * 7

# Gemma 3 from 4B on stretches the positions of its full layers eightfold.
_STRETCHED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

_GEMMA_2B = Published(
    "gemma",
    {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
    },
)
_GEMMA_7B = Published("gemma", {})
_GEMMA3_270M = Published(
    "gemma3_text",
    {
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
    },
)

# By the Hub's name, without the owner and without -it or -pt. Where the numbers are from:
# - the language parts: Transformers' conversion scripts (`models/gemma*/convert_*`), which hold one configuration for
#   each size, beside google-deepmind/gemma (`gm/nn`), and copies of the config.json for Gemma 1 and 2. Where a script
#   was mended later, the config.json is right: the 9B's `query_pre_attn_scalar` is 256, the default, not 224
#   (transformers issue 31891).
# - the towers: counted on Transformers' classes with the vision and audio configurations of the same scripts. Gemma
#   3n's image tower is timm's; its weights are what the Hub's count leaves after all other parts.
# tests/models/test_published.py adds language part, towers and what is stored beside them up to the Hub's own count.
PUBLISHED: dict[str, Published] = {
    "gemma-2b": _GEMMA_2B,
    "gemma-7b": _GEMMA_7B,
    "gemma-1.1-2b": _GEMMA_2B,
    "gemma-1.1-7b": _GEMMA_7B,
    "gemma-2-2b": Published("gemma2", {}),
    "gemma-2-9b": Published(
        "gemma2",
        {
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
        },
    ),
    "gemma-2-27b": Published(
        "gemma2",
        {
            "hidden_size": 4608,
            "intermediate_size": 36864,
            "num_hidden_layers": 46,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "query_pre_attn_scalar": 144,
        },
    ),
    "gemma-3-270m": _GEMMA3_270M,
    "functiongemma-270m": _GEMMA3_270M,
    "gemma-3-1b": Published(
        "gemma3_text",
        {
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "max_position_embeddings": 32768,
            "sliding_window": 512,
        },
    ),
    "gemma-3-4b": Published(
        "gemma3_text",
        {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
            "rope_parameters": _STRETCHED,
        },
        tower_parameters=419_816_304,
    ),
    "gemma-3-12b": Published(
        "gemma3_text",
        {
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "sliding_window": 1024,
            "rope_parameters": _STRETCHED,
        },
        tower_parameters=421_290_864,
    ),
    "gemma-3-27b": Published(
        "gemma3_text",
        {
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "query_pre_attn_scalar": 168,
            "sliding_window": 1024,
            "rope_parameters": _STRETCHED,
        },
        tower_parameters=423_060_336,
    ),
    "gemma-3n-E2B": Published(
        "gemma3n_text",
        {"intermediate_size": 8192, "num_hidden_layers": 30, "num_kv_shared_layers": 10},
        tower_parameters=983_281_504,
    ),
    "gemma-3n-E4B": Published("gemma3n_text", {}, tower_parameters=983_281_504),
    "gemma-4-E2B": Published(
        "gemma4_text",
        {
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "num_hidden_layers": 35,
            "num_key_value_heads": 1,
            "num_kv_shared_layers": 20,
            "use_double_wide_mlp": True,
            "layer_types": _EVERY_FIFTH,
            "final_logit_softcapping": 30.0,
        },
        tower_parameters=475_728_160,
    ),
    "gemma-4-E4B": Published(
        "gemma4_text",
        {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 42,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": 18,
            "final_logit_softcapping": 30.0,
        },
        tower_parameters=478_087_456,
    ),
    "gemma-4-12B": Published(
        "gemma4_unified_text",
        {
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "final_logit_softcapping": 30.0,
        },
        tower_parameters=52_379_904,
    ),
    "gemma-4-26B-A4B": Published(
        "gemma4_text",
        {
            "hidden_size": 2816,
            "hidden_size_per_layer_input": 0,
            "intermediate_size": 2112,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "num_experts": 128,
            "top_k_experts": 8,
            "moe_intermediate_size": 704,
            "max_position_embeddings": 262144,
            "sliding_window": 1024,
            "use_bidirectional_attention": "vision",
            "final_logit_softcapping": 30.0,
        },
        tower_parameters=572_792_112,
    ),
    "gemma-4-31B": Published(
        "gemma4_text",
        {
            "hidden_size": 5376,
            "hidden_size_per_layer_input": 0,
            "intermediate_size": 21504,
            "num_hidden_layers": 60,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "num_global_key_value_heads": 4,
            "attention_k_eq_v": True,
            "max_position_embeddings": 262144,
            "sliding_window": 1024,
            "use_bidirectional_attention": "vision",
            "final_logit_softcapping": 30.0,
        },
        tower_parameters=575_741_232,
    ),
}

# Google's checkpoints that were trained for 4 bits are held in bfloat16 with the same sizes.
_SUFFIX = re.compile(r"(-it|-pt)?(-qat-q4_0-unquantized)?$")
_BY_NAME = {name.lower(): entry for name, entry in PUBLISHED.items()}


def published(name: str) -> Published | None:
    """The entry of a checkpoint by its Hub name, such as google/gemma-3-4b-it, or None.

    The owner is not looked at, since others offer the same checkpoints under the same name, nor is the case of the
    letters, as on the Hub. A name with anything more at its end is another model: a drafter, a quantised or tuned one.

    Args:
        name: With or without the owner.

    Returns:
        A copy of its own: Transformers' configurations write into what they are given.
    """
    found = _BY_NAME.get(_SUFFIX.sub("", name.rsplit("/", 1)[-1].lower()))
    return replace(found, text=deepcopy(dict(found.text))) if found else None
