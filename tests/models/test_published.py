"""The published sizes: every model is built without memory, and counted against what the Hub says of its checkpoint."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gemma_tune.models.published import all_published, published

PUBLISHED = all_published()


class Stored(NamedTuple):
    """How many numbers a checkpoint's safetensors files hold.

    Attributes:
        total: As the Hub counts them: "Model size" on the checkpoint's page, `safetensors.total` of
            https://huggingface.co/api/models/NAME. KerasHub's presets name the same figures for Gemma 1 and 2, Gemma 3
            270M and 1B, and FunctionGemma.
        idle: Among them, what stands in the language part and is no weight of the model that we build: keys and values
            of the layers that take those of a lower layer (3n, 4 E2B and E4B: they are stored and never used), and
            Gemma 4's one scalar for each layer, which is a buffer.
        scales: Among them, the shift and the scale of the large image tower's 1152 output channels, also buffers. (The
            bounds of E2B's and E4B's clipped layers, single numbers, are not in the Hub's count.)
    """

    total: int
    idle: int = 0
    scales: int = 0


def keys_and_values(layers: int, hidden_size: int, heads: int, head_dim: int) -> int:
    """k_proj, v_proj and k_norm of so many layers."""
    return layers * (2 * hidden_size * heads * head_dim + head_dim)


E2B_IDLE = keys_and_values(16, 1536, 1, 256) + keys_and_values(4, 1536, 1, 512) + 35
E4B_IDLE = keys_and_values(15, 2560, 2, 256) + keys_and_values(3, 2560, 2, 512) + 42

STORED = {
    "gemma-2b": Stored(2_506_172_416),
    "gemma-7b": Stored(8_537_680_896),
    "gemma-1.1-2b": Stored(2_506_172_416),
    "gemma-1.1-7b": Stored(8_537_680_896),
    "gemma-2-2b": Stored(2_614_341_888),
    "gemma-2-9b": Stored(9_241_705_984),
    "gemma-2-27b": Stored(27_227_128_320),
    "gemma-3-270m": Stored(268_098_176),
    "functiongemma-270m": Stored(268_098_176),
    "gemma-3-1b": Stored(999_885_952),
    "gemma-3-4b": Stored(4_300_079_472),
    "gemma-3-12b": Stored(12_187_325_040),
    "gemma-3-27b": Stored(27_432_406_640),
    "gemma-3n-E2B": Stored(5_439_438_272, keys_and_values(10, 2048, 2, 256)),
    "gemma-3n-E4B": Stored(7_849_978_192, keys_and_values(15, 2048, 2, 256)),
    "gemma-4-E2B": Stored(5_123_178_051, E2B_IDLE),
    "gemma-4-E4B": Stored(7_996_156_490, E4B_IDLE),
    "gemma-4-12B": Stored(11_959_730_224, 48),
    "gemma-4-26B-A4B": Stored(25_805_936_206, 30, 2 * 1152),
    "gemma-4-31B": Stored(31_273_088_876, 60, 2 * 1152),
}


def config_of(name: str) -> Any:
    entry = published(name)
    assert entry is not None
    return AutoConfig.for_model(entry.model_type, **entry.text)


def test_every_entry_is_counted() -> None:
    assert set(STORED) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    """The language part, the towers and what is idle are the whole checkpoint, to the number."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    assert model.config.model_type == PUBLISHED[name].model_type
    parameters = sum(p.numel() for p in model.parameters())
    stored = STORED[name]
    assert parameters + PUBLISHED[name].tower_parameters == stored.total - stored.idle - stored.scales


@pytest.mark.parametrize("name", PUBLISHED)
def test_says_only_what_is_no_default(name: str) -> None:
    """What equals the class's default would hide a default that changes."""
    default = AutoConfig.for_model(PUBLISHED[name].model_type)
    said = PUBLISHED[name].text
    assert not [key for key, value in said.items() if getattr(default, key, None) == value]


# Tokens that a checkpoint was made for: Gemma 1 and 2 8K, 3 270M and 1B and 3n 32K, 4 12B and larger 256K, others 128K.
CONTEXT = {
    **dict.fromkeys(("gemma", "gemma2"), 8192),
    **dict.fromkeys(("gemma-3-270m", "functiongemma-270m", "gemma-3-1b", "gemma3n_text"), 32768),
    **dict.fromkeys(("gemma-4-26B-A4B", "gemma-4-31B", "gemma4_unified_text"), 262144),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_context(name: str) -> None:
    expected = CONTEXT.get(name, CONTEXT.get(PUBLISHED[name].model_type, 131072))
    assert config_of(name).max_position_embeddings == expected


def test_layers_that_see_all_tokens() -> None:
    """As many as in the conversion scripts: one in five for 3n and Gemma 4 E2B, one in six elsewhere."""
    full = {n: config_of(n).layer_types.count("full_attention") for n in PUBLISHED if n.startswith("gemma-4")}
    assert full == {"gemma-4-E2B": 7, "gemma-4-E4B": 7, "gemma-4-12B": 8, "gemma-4-26B-A4B": 5, "gemma-4-31B": 10}
    assert config_of("gemma-3n-E2B").layer_types.count("full_attention") == 6
    assert config_of("gemma-3-4b").layer_types.count("full_attention") == 5


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("google/gemma-3-4b-it", "gemma-3-4b"),
        ("google/gemma-3-1b-pt", "gemma-3-1b"),
        ("google/gemma-3-270m", "gemma-3-270m"),
        ("google/gemma-1.1-7b-it", "gemma-1.1-7b"),
        ("google/gemma-4-26B-A4B-it", "gemma-4-26B-A4B"),
        ("google/gemma-4-e2b-it", "gemma-4-E2B"),
        ("unsloth/gemma-3n-E4B-it", "gemma-3n-E4B"),
        ("google/functiongemma-270m-it", "functiongemma-270m"),
        ("google/gemma-3-12b-it-qat-q4_0-unquantized", "gemma-3-12b"),
    ],
)
def test_names(name: str, entry: str) -> None:
    assert published(name) == PUBLISHED[entry]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "google/gemma",
        "google/gemma-4-E2B-it-assistant",
        "google/gemma-3-4b-it-qat-q4_0-gguf",
        "google/diffusiongemma-26B-A4B-it",
        "google/paligemma-3b-pt-224",
        "meta-llama/Llama-3.2-1B",
    ],
)
def test_other_models_have_no_entry(name: str) -> None:
    assert published(name) is None


def test_an_answer_is_a_copy() -> None:
    """A configuration writes into what it is given: the table stays as it is."""
    entry = published("google/gemma-3-4b-it")
    assert entry is not None
    entry.text["rope_parameters"]["full_attention"]["factor"] = 1.0
    assert published("google/gemma-3-4b-it") == PUBLISHED["gemma-3-4b"] != entry
