"""The metadata of an mmproj file, and what llama.cpp can't compute of a family's towers.

What llama.cpp reads, and what it has built in: https://github.com/ggml-org/llama.cpp/tree/master/tools/mtmd
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from gguf import GGUFWriter, VisionProjectorType

from gemma_tune.media.families import image_limits

# Sizes that llama.cpp takes where the file has no key of them
_MERGED_3, _MERGED_4 = 4, 3
# What llama.cpp has built in for Gemma 4's towers
_ROTARY_BASE, _MEL_BINS, _CHUNK, _BEFORE = 100.0, 128, 12, 13
_SAMPLES = 640  # of sound in one token of Gemma 4 12B
# Its types, which the gguf package has no names for
_UNIFIED_IMAGES, _UNIFIED_SOUND = "gemma4uv", "gemma4ua"
_OTHER_FAMILIES = {"gemma3n": "Gemma 3n"}
LEFT_OUT = (
    "no mmproj file: that of {}'s towers for images and sound isn't written, so the GGUF file reads texts alone; "
    "export=merged holds the towers."
)
_Problems: TypeAlias = list[str]


def has_no_mmproj(model_type: str) -> str | None:
    """What to say of a family with towers whose mmproj file isn't written; None for the others."""
    name = _OTHER_FAMILIES.get(model_type)
    return LEFT_OUT.format(name) if name else None


def add_mmproj_metadata(writer: GGUFWriter, config: Any, sees: bool, hears: bool, most_tokens: int) -> None:
    """Writes what llama.cpp needs to know of the towers.

    Args:
        writer: The file's writer.
        config: The whole model's.
        sees: Whether the file holds an image tower.
        hears: Whether the file holds a sound tower.
        most_tokens: The most tokens of an image in training, where its size decides.
    """
    writer.add_type("mmproj")
    width = config.get_text_config().hidden_size
    if sees:
        _VISION[config.model_type](writer, config.vision_config, config)
        writer.add_clip_has_vision_encoder(True)
        writer.add_vision_projection_dim(width)
        # Else llama.cpp takes GELU's approximation by a sigmoid: 3.3 nats apart on random weights of Gemma 4
        writer.add_vision_use_gelu(True)
        if config.model_type != "gemma3":
            side = config.vision_config.patch_size * config.vision_config.pooling_kernel_size
            fewest, most = image_limits(most_tokens)
            writer.add_vision_min_pixels(fewest * side**2)
            writer.add_vision_max_pixels(most * side**2)
    if hears:
        _AUDIO[config.model_type](writer, config.audio_config)
        writer.add_clip_has_audio_encoder(True)
        writer.add_audio_projection_dim(width)


def _add_sizes(writer: GGUFWriter, vision: Any, image_size: int, mean: float, std: float) -> None:
    writer.add_vision_image_size(image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_image_mean([mean] * 3)
    writer.add_vision_image_std([std] * 3)


def _gemma3_vision(writer: GGUFWriter, vision: Any, config: Any) -> None:
    _add_sizes(writer, vision, vision.image_size, 0.5, 0.5)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_clip_projector_type(VisionProjectorType.GEMMA3)
    if (merged := _merged_side(vision, config)) != _MERGED_3:
        writer.add_vision_projector_scale_factor(merged)


def _merged_side(vision: Any, config: Any) -> int:
    """How many patches of a row become one soft token."""
    return int(vision.image_size // vision.patch_size // round(config.mm_tokens_per_image**0.5))


def _gemma4_vision(writer: GGUFWriter, vision: Any, _config: Any) -> None:
    _add_sizes(writer, vision, 224, 0.0, 1.0)  # a size that nothing reads, but that must be there
    writer.add_vision_attention_layernorm_eps(vision.rms_norm_eps)
    writer.add_clip_vision_projector_type(VisionProjectorType.GEMMA4V)
    if vision.pooling_kernel_size != _MERGED_4:
        writer.add_vision_projector_scale_factor(vision.pooling_kernel_size)


def _gemma4_audio(writer: GGUFWriter, audio: Any) -> None:
    writer.add_audio_embedding_length(audio.hidden_size)
    writer.add_audio_feed_forward_length(4 * audio.hidden_size)
    writer.add_audio_block_count(audio.num_hidden_layers)
    writer.add_audio_head_count(audio.num_attention_heads)
    writer.add_clip_audio_projector_type(VisionProjectorType.GEMMA4A)
    writer.add_audio_num_mel_bins(_MEL_BINS)
    writer.add_audio_attention_layernorm_eps(audio.rms_norm_eps)


def _unified_vision(writer: GGUFWriter, vision: Any, _config: Any) -> None:
    """A layer on each square of pixels: no blocks; the head is one that nothing reads, but that must be there."""
    writer.add_vision_image_size(224)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.mm_embed_dim)
    writer.add_vision_feed_forward_length(0)
    writer.add_vision_block_count(0)
    writer.add_vision_head_count(1)
    writer.add_vision_image_mean([0.0] * 3)
    writer.add_vision_image_std([1.0] * 3)
    writer.add_vision_attention_layernorm_eps(vision.rms_norm_eps)
    writer.add_clip_vision_projector_type(_UNIFIED_IMAGES)
    if vision.pooling_kernel_size != _MERGED_4:
        writer.add_vision_projector_scale_factor(vision.pooling_kernel_size)


def _unified_audio(writer: GGUFWriter, audio: Any) -> None:
    """A layer on the samples; llama.cpp takes their number for that of bands."""
    writer.add_audio_embedding_length(audio.audio_embed_dim)
    writer.add_audio_feed_forward_length(0)
    writer.add_audio_block_count(0)
    writer.add_audio_head_count(1)
    writer.add_clip_audio_projector_type(_UNIFIED_SOUND)
    writer.add_audio_num_mel_bins(audio.audio_embed_dim)
    writer.add_audio_attention_layernorm_eps(audio.rms_norm_eps)


_VISION: dict[str, Callable[[GGUFWriter, Any, Any], None]] = {
    "gemma3": _gemma3_vision,
    "gemma4": _gemma4_vision,
    "gemma4_unified": _unified_vision,
}
_AUDIO: dict[str, Callable[[GGUFWriter, Any], None]] = {"gemma4": _gemma4_audio, "gemma4_unified": _unified_audio}


def tower_problems(config: Any) -> list[str]:
    """What llama.cpp would compute otherwise than it was trained.

    Args:
        config: The whole model's, of a family whose mmproj file is written.
    """
    return _PROBLEMS[config.model_type](config)


def _gemma3_problems(config: Any) -> _Problems:
    vision = config.vision_config
    side = round(config.mm_tokens_per_image**0.5) * _merged_side(vision, config)
    return _said(
        (vision.hidden_act != "gelu_pytorch_tanh", f"vision_config.hidden_act is {vision.hidden_act}"),
        (side != vision.image_size // vision.patch_size, "mm_tokens_per_image is no part of the patches"),
    )


def _gemma4_problems(config: Any) -> _Problems:
    vision, audio = config.vision_config, getattr(config, "audio_config", None)
    found = _Problems()
    if vision is not None:
        base = vision.rope_parameters["rope_theta"]
        found += _said(
            (vision.hidden_activation != "gelu_pytorch_tanh", f"the activation is {vision.hidden_activation}"),
            (base != _ROTARY_BASE, f"vision_config.rope_parameters.rope_theta is {base}"),
            (vision.num_key_value_heads != vision.num_attention_heads, "vision_config.num_key_value_heads differs"),
            (vision.head_dim * vision.num_attention_heads != vision.hidden_size, "vision_config.head_dim differs"),
        )
    if audio is not None:
        channels = list(audio.subsampling_conv_channels)
        found += _said(
            (channels != [_MEL_BINS, 32], f"audio_config.subsampling_conv_channels is {channels}"),
            (audio.attention_chunk_size != _CHUNK, "audio_config.attention_chunk_size differs"),
            (audio.attention_context_left != _BEFORE, "audio_config.attention_context_left differs"),
            (audio.attention_context_right != 0, "audio_config.attention_context_right differs"),
        )
    return found


def _unified_problems(config: Any) -> _Problems:
    audio = getattr(config, "audio_config", None)
    samples = _SAMPLES if audio is None else audio.audio_embed_dim
    return _said((samples != _SAMPLES, f"audio_config.audio_embed_dim is {samples}"))


_PROBLEMS: dict[str, Callable[[Any], _Problems]] = {
    "gemma3": _gemma3_problems,
    "gemma4": _gemma4_problems,
    "gemma4_unified": _unified_problems,
}


def _said(*found: tuple[bool, str]) -> _Problems:
    return [words for wrong, words in found if wrong]
