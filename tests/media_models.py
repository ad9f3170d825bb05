"""Small models with towers, of the real classes, with random weights, in folders with the family's real processor.

`media_folder` writes one; `processor_of` gives the real processor, which tests hold our rendering against.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from forms_at_hand import tokenizer_of
from image_tower_3n import import_timm
from small_models import MODELS, of_config
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerFast

from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import Source

# The names that the families' tokenizers give to the tokens of media
_NAMES3 = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
_NAMES3N = {
    **_NAMES3, "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>",
}  # fmt: skip
_NAMES4 = {
    "boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>",
    "boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>",
}  # fmt: skip

# By the names of small_models.MODELS: the chat form, the names of the tokens, and what config.json calls their ids
FAMILIES: Mapping[str, tuple[str, dict[str, str], str]] = {
    "gemma3": ("gemma3", _NAMES3, "Gemma3Processor"),
    "gemma3n": ("gemma3n", _NAMES3N, "Gemma3nProcessor"),
    "gemma4_e2b": ("gemma4_v5", _NAMES4, "Gemma4Processor"),
    "gemma4_31b": ("gemma4_large_v5", _NAMES4, "Gemma4Processor"),
    "gemma4_26b": ("gemma4_large_v5", _NAMES4, "Gemma4Processor"),
    "gemma4_12b": ("gemma4_large_v5", _NAMES4, "Gemma4UnifiedProcessor"),
}
_VOCABULARY = 1600
_SIDE_3N = 64  # pixels of an image of Gemma 3n's small model; 768 as published
IMAGE_TOKENS = 4  # of Gemma 3's small model: 16 × 16 pixels in patches of 4, pooled by 2 × 2


def media_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The embedded model's tokenizer with the tokens of the family's media, and their names."""
    form, names, _ = FAMILIES[family]
    tokenizer = tokenizer_of(form)
    given = dict.fromkeys([*names.values(), *(["<|video|>"] if form.startswith("gemma4") else [])])
    vocabulary = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in given if token not in vocabulary], special_tokens=True)
    tokenizer._set_model_specific_special_tokens(names)
    return tokenizer


def _processor_settings(family: str) -> dict[str, Any]:
    """processor_config.json as the families publish it, with the small model's sizes."""
    if family == "gemma3":
        image = {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 16, "width": 16}}
        return {"image_processor": image, "image_seq_length": IMAGE_TOKENS}
    if family == "gemma3n":
        size = {"height": _SIDE_3N, "width": _SIDE_3N}
        return {
            "image_processor": {"image_processor_type": "SiglipImageProcessor", "size": size, "do_normalize": False},
            "feature_extractor": {"feature_extractor_type": "Gemma3nAudioFeatureExtractor"},
            "image_seq_length": 256, "audio_seq_length": 188,
        }  # fmt: skip
    name = "Gemma4Unified" if family == "gemma4_12b" else "Gemma4"
    return {
        "image_processor": {"image_processor_type": f"{name}ImageProcessor", "max_soft_tokens": 280},
        "feature_extractor": {"feature_extractor_type": f"{name}AudioFeatureExtractor"},
        "video_processor": {"video_processor_type": f"{name}VideoProcessor"},
        "image_seq_length": 280, "audio_seq_length": 750, "audio_ms_per_token": 40,
    }  # fmt: skip


def processor_folder(family: str, folder: Path) -> Path:
    """Tokenizer, config.json and processor without a model: enough to render."""
    class_name, text, parts = MODELS[family]
    if family == "gemma4_e2b":  # Transformers' input projection takes these widths only
        parts = {**parts, "audio_config": {**parts["audio_config"], "subsampling_conv_channels": [128, 32]}}
    tokenizer = media_tokenizer(family)
    ids = {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(token) for kind, token in _soft(family).items()}
    config_class = getattr(transformers, class_name.replace("ForConditionalGeneration", "Config"))
    if family == "gemma3n":
        text, parts = {**text, "vocab_size_per_layer_input": _id(tokenizer, "eoi_token")}, _parts_of_3n(tokenizer)
    if family == "gemma4_12b":  # the published squares of 48 pixels, and a table that has room for real pictures
        parts = {**parts, "vision_config": {**parts["vision_config"], "patch_size": 16, "mm_posemb_size": 128}}
    assert len(tokenizer) <= _VOCABULARY
    text = {**text, "vocab_size": _VOCABULARY}
    if FAMILIES[family][0].startswith("gemma4_large"):  # as they are published; the tokens of an image see each other
        text["use_bidirectional_attention"] = "vision"
    config = config_class(text_config=text, **parts, **ids)
    config.architectures = [class_name]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_processor(family, folder)
    return folder


def _id(tokenizer: Any, name: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(_NAMES3N[name]))


def _parts_of_3n(tokenizer: Any) -> dict[str, Any]:
    """The towers of a small Gemma 3n: the published image tower of all 84 blocks, 0.03 times as wide.

    As published, the ends of media and the soft tokens stand behind the vocabulary of the per-layer embeddings: they
    are embedded by the projectors, those of images first.
    """
    first, audio = _id(tokenizer, "eoi_token"), _id(tokenizer, "boa_token")
    made = {"channel_multiplier": 0.03, "pretrained_cfg_overlay": {"input_size": [3, *[_SIDE_3N] * 2]}}
    vision = {"hidden_size": 2048, "model_args": made}
    _, _, parts = MODELS["gemma3n"]
    return {
        "vision_config": {**vision, "vocab_offset": first, "vocab_size": audio - first},
        "audio_config": {
            **parts["audio_config"],
            "vocab_offset": audio,
            "vocab_size": _VOCABULARY - audio,
            "input_feat_size": 128,
        },
    }


def folders_once(
    factory: pytest.TempPathFactory, change: Callable[[Path], None] = lambda folder: None
) -> Callable[[str], Path]:
    """Gives each family's `media_folder`, changed by `change`; made once, when it is first asked for."""

    @functools.cache
    def of(family: str) -> Path:
        folder = media_folder(family, factory.mktemp(family))
        change(folder)
        return folder

    return of


def media_folder(family: str, folder: Path) -> Path:
    """The same with a small model of the real class, with random weights; skips for `gemma3n` where timm is missing."""
    if family == "gemma3n":
        import_timm()
    processor_folder(family, folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    of_config(getattr(transformers, config.architectures[0]), config).save_pretrained(folder)
    return folder


def _soft(family: str) -> dict[str, str]:
    names = FAMILIES[family][1]
    soft = {"image": names["image_token"]}
    if "audio_token" in names:
        soft["audio"] = names["audio_token"]
    if family.startswith("gemma4"):
        soft["video"] = "<|video|>"
    return soft


def _write_processor(family: str, folder: Path) -> None:
    settings = {**_processor_settings(family), "processor_class": FAMILIES[family][2]}
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def tokenizer_at(folder: Path, **images_kwargs: Any) -> Any:
    """The tokenizer as a run loads it, with its `media`."""
    source = Source(str(folder), None, None, str(folder), images_kwargs=tuple(sorted(images_kwargs.items())))
    return load_tokenizer(source)


def processor_of(family: str, folder: Path, **images: Any) -> Any:
    """The family's real processor, of the folder's files; `backend="pil"` resizes as without torchvision.

    Gemma 4's wants a video processor, which needs torchvision; for images and sounds none is asked for anything.
    """
    name = FAMILIES[family][2]
    whole = getattr(transformers, name)
    parts: dict[str, Any] = {
        "image_processor": AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, **images)
    }
    settings = json.loads((folder / "processor_config.json").read_text("utf-8"))
    if "feature_extractor" in settings:
        parts["feature_extractor"] = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    if "video_processor" in settings:
        parts["video_processor"] = _video_processor(folder)
    numbers = {key: value for key, value in settings.items() if isinstance(value, int)}
    checked = type(name, (whole,), {} if parts.get("video_processor", 1) else {"check_argument_for_proper_class": _any})
    return checked(tokenizer=AutoTokenizer.from_pretrained(folder, trust_remote_code=False), **parts, **numbers)


def _any(self: Any, name: str, argument: Any) -> None:
    """In place of the check of types, which a missing video processor doesn't pass."""


def _video_processor(folder: Path) -> Any:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        return None
    from transformers import AutoVideoProcessor

    return AutoVideoProcessor.from_pretrained(folder, trust_remote_code=False)
