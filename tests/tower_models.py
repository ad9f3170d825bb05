"""Small models that see and hear, of the real classes with random weights, in sizes that llama.cpp computes.

Their towers' features matter as much as words do, and every bound, scale and buffer has a value of its own.
"""

from __future__ import annotations

import json
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from forms_at_hand import tokenizer_of
from PIL import Image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import Gemma4UnifiedAudioFeatureExtractor

from gemma_tune.chat import FORMS, served_template
from gemma_tune.export.media_reference import Question

_SLIDING, _FULL = "sliding_attention", "full_attention"
_VOCABULARY = 1600
_TEXT: dict[str, Any] = {
    "vocab_size": _VOCABULARY, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 4, "max_position_embeddings": 1024,
    "sliding_window": 64, "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL], "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 1,
}  # fmt: skip
_SIGLIP: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64,
    "patch_size": 8, "vision_use_head": False,
}  # fmt: skip
_VISION4: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 64, "patch_size": 16, "pooling_kernel_size": 3,
    "position_embedding_size": 256, "use_clipped_linears": True,
}  # fmt: skip
# llama.cpp takes the width of the subsampled features from the channels; other numbers abort it
_AUDIO4: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "output_proj_dims": 192,
    "subsampling_conv_channels": [128, 32],
}  # fmt: skip
# llama.cpp has sounds of 640 samples a token built in
_UNIFIED: dict[str, Any] = {
    "vision_config": {"mm_embed_dim": 128, "mm_posemb_size": 64, "output_proj_dims": 128},
    "audio_config": {"audio_embed_dim": 640},
}  # fmt: skip
_TEXT4: dict[str, Any] = {**_TEXT, "global_head_dim": 128, "final_logit_softcapping": 30.0}
# Each form's tokens for media, which the embedded tokenizer has no place for
_MEDIA = {
    "gemma3": {
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
    },
    "gemma4": {
        "boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>", "boa_token": "<|audio>",
        "eoa_token": "<audio|>", "audio_token": "<|audio|>", "video_token": "<|video|>",
    },
}  # fmt: skip
NAMES = ("gemma3", "gemma4_26b", "gemma4_e2b", "gemma4_12b")


@dataclass
class Seeing:
    """A model, its tokenizer, and the parts of its processor.

    Attributes:
        model: The whole model, float32.
        tokenizer: With the template that is served, and the tokens of its media.
        images: The image processor.
        sounds: The feature extractor, or None.
    """

    model: Any
    tokenizer: Any
    images: Any
    sounds: Any | None

    @property
    def towers(self) -> dict[str, torch.Tensor]:
        """Every tensor outside the language part, by its name in the checkpoint."""
        return {n: t for n, t in self.model.state_dict().items() if "language_model" not in n and "lm_head" not in n}

    @property
    def language(self) -> dict[str, torch.Tensor]:
        """The language part's tensors by their names there; the head is tied."""
        return {f"model.{name}": tensor for name, tensor in self.model.model.language_model.state_dict().items()}

    def picture(self, folder: Path) -> Question:
        """A question about a picture of blurred colours, in a size that no engine changes."""
        size = (64, 64) if self.sounds is None and self.model.config.model_type == "gemma3" else (816, 768)
        file = folder / "picture.png"
        colours = np.random.RandomState(0).randint(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(file)
        found = dict(self.images(images=[Image.open(file)], return_tensors="pt"))
        count = found.pop("num_soft_tokens_per_image", [16])
        found.pop("num_crops", None)
        written = "<|image>" + "<|image|>" * int(count[0]) + "<image|>"
        if self.model.config.model_type == "gemma3":
            written = "\n\n<start_of_image>" + "<image_soft_token>" * 16 + "<end_of_image>\n\n"
        return self._question("image", file, written, 1, found)

    def sound(self, folder: Path) -> Question:
        """A question about two seconds of a rising tone in noise."""
        assert self.sounds is not None
        file, noise = folder / "sound.wav", np.random.RandomState(0)
        t = np.arange(2 * 16_000) / 16_000
        samples = 0.3 * np.sin(2 * np.pi * (300 + 200 * t) * t) + 0.05 * noise.randn(len(t))
        samples = (samples.clip(-1, 1) * 32767).astype("<i2")
        with wave.open(str(file), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(16_000)
            out.writeframes(samples.tobytes())
        found = self.sounds([samples.astype(np.float32) / 32768], return_tensors="pt", sampling_rate=16_000)
        return self._question("audio", file, "<|audio>" + "<|audio|>" * 50 + "<audio|>", 3, dict(found))

    def _question(self, kind: str, file: Path, written: str, number: int, inputs: dict[str, Any]) -> Question:
        """The prompt as the family's processor writes it: blanks round texts are the template's to trim."""
        words = {"type": "text", "text": " Read it. "}
        chat = [{"role": "user", "content": [{"type": kind}, words]}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        placeholder = "<start_of_image>" if self.model.config.model_type == "gemma3" else f"<|{kind}|>"
        ids = self.tokenizer(text.replace(placeholder, written, 1), add_special_tokens=False).input_ids
        soft = getattr(self.model.config, f"{kind}_token_id")
        name = "token_type_ids" if self.model.config.model_type == "gemma3" else "mm_token_type_ids"
        kinds = torch.tensor([[number if token == soft else 0 for token in ids]])
        messages = [{"role": "user", "content": [{"type": kind, kind: str(file)}, words]}]
        return Question(messages, ids, inputs, {name: kinds})

    def save(self, folder: Path) -> Path:
        """A checkpoint: config, weights, tokenizer and the processors' settings."""
        stored = self.model.state_dict()
        stored.pop("lm_head.weight")  # tied
        tensors = {name: tensor.bfloat16() for name, tensor in stored.items()}
        self.model.save_pretrained(folder, state_dict=tensors)
        self.tokenizer.save_pretrained(folder)
        settings: dict[str, Any] = {"image_processor": json.loads(self.images.to_json_string())}
        if self.model.config.model_type == "gemma3":
            settings["image_seq_length"] = self.model.config.mm_tokens_per_image
        if self.sounds is not None:
            settings["feature_extractor"] = json.loads(self.sounds.to_json_string())
        (folder / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return folder


def build(name: str, width: int = 256) -> Seeing:
    """One of `NAMES`, with the same weights each time; llama.cpp goes by the width of Gemma 4 in what attends how."""
    form = "gemma3" if name == "gemma3" else "gemma4"
    tokenizer = tokenizer_of(FORMS[form].name)
    tokenizer.add_tokens(list(_MEDIA[form].values()), special_tokens=True)
    tokenizer._set_model_specific_special_tokens(_MEDIA[form])
    tokenizer.chat_template = served_template(FORMS[form].name)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _MEDIA[form].items()}
    torch.manual_seed(0)
    if form == "gemma3":
        model = transformers.Gemma3ForConditionalGeneration(
            transformers.Gemma3Config(
                text_config={**_TEXT, "query_pre_attn_scalar": 64},
                vision_config=_SIGLIP,
                mm_tokens_per_image=16,
                boi_token_index=ids["boi_token"],
                eoi_token_index=ids["eoi_token"],
                image_token_index=ids["image_token"],
            )
        )
        images: Any = Gemma3ImageProcessorPil(size={"height": 64, "width": 64})
    else:
        small = name == "gemma4_e2b"
        text = {**_TEXT4, "hidden_size": width, "hidden_size_per_layer_input": 0}
        text["use_bidirectional_attention"] = "vision"
        if small:
            text |= {
                "num_hidden_layers": 6, "layer_types": [_SLIDING, _SLIDING, _FULL] * 2, "num_kv_shared_layers": 3,
                "hidden_size_per_layer_input": 64, "vocab_size_per_layer_input": _VOCABULARY,
                "use_bidirectional_attention": None,
            }  # fmt: skip
        parts: dict[str, Any] = {
            "vision_config": {**_VISION4, "standardize": not small},
            "audio_config": _AUDIO4 if small else None,
        }
        if name == "gemma4_12b":  # a full layer before others, for what its tokens see is told from those behind it
            parts, text["layer_types"] = _UNIFIED, [_SLIDING, _FULL, _SLIDING, _FULL]
        family = "Gemma4Unified" if name == "gemma4_12b" else "Gemma4"
        model = getattr(transformers, f"{family}ForConditionalGeneration")(
            getattr(transformers, f"{family}Config")(
                text_config=text,
                **parts,
                boi_token_id=ids["boi_token"],
                eoi_token_id=ids["eoi_token"],
                image_token_id=ids["image_token"],
                video_token_id=ids["video_token"],
                boa_token_id=ids["boa_token"],
                eoa_token_index=ids["eoa_token"],
                audio_token_id=ids["audio_token"],
            )
        )
        images = Gemma4ImageProcessorPil()
        if name == "gemma4_12b":  # its own class needs torchvision; a patch here is a token there
            images = Gemma4ImageProcessorPil(patch_size=48, pooling_kernel_size=1)
    _random(model)
    model.generation_config.eos_token_id = [1]
    sounds = {"gemma4_e2b": Gemma4AudioFeatureExtractor, "gemma4_12b": Gemma4UnifiedAudioFeatureExtractor}.get(name)
    return Seeing(model.float().eval(), tokenizer, images, sounds and sounds())


@torch.no_grad()  # type: ignore[untyped-decorator]
def _random(model: Any) -> None:
    torch.manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("input_min", "output_min")):
            tensor.fill_(-6.0 if "input" in name else -8.0).add_(torch.rand_like(tensor))
        elif name.endswith(("input_max", "output_max")):
            tensor.fill_(6.0 if "input" in name else 8.0).sub_(torch.rand_like(tensor))
        elif name.endswith(("layer_scalar", "std_scale", "per_expert_scale")):
            tensor.copy_(1 + 0.1 * torch.randn_like(tensor))
        elif name.endswith(("std_bias", ".bias", "per_dim_scale")):
            tensor.normal_(0.0, 0.05)
        elif tensor.ndim > 1 and name in dict(model.named_parameters()):
            tensor.normal_(0.0, 1.0 / 12 if tensor.ndim < 4 else 0.05)
        elif "norm" in name:
            tensor.add_(0.1 * torch.randn_like(tensor))
    model.tie_weights()
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.bfloat16())  # what a published checkpoint can hold
