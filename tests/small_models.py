"""Small models of every Gemma class, of the real classes, with random weights, saved as a published checkpoint is.

Each has what its family has: softcaps, sliding and full layers, shared keys and values, per-layer embeddings, experts,
and the towers for images and audio.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from forms_at_hand import tokenizer_of
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, Gemma3nConfig, Gemma3nForCausalLM, PreTrainedModel
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioEncoder

from gemma_tune.chat import FORMS
from gemma_tune.models.estimate.size import empty_model
from gemma_tune.models.family import FAMILIES

_SLIDING, _FULL = "sliding_attention", "full_attention"
_TEXT: dict[str, Any] = {
    "vocab_size": 1600, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "num_hidden_layers": 4, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 1,
}  # fmt: skip
_LAYERS: dict[str, Any] = {"sliding_window": 16, "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL]}
_SIGLIP: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
_GEMMA4: dict[str, Any] = {**_TEXT, **_LAYERS, "global_head_dim": 32, "final_logit_softcapping": 30.0}
_VISION4: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 256, "use_clipped_linears": True,
}  # fmt: skip
_AUDIO4: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "subsampling_conv_channels": [8, 4],
    "output_proj_dims": 32,
}  # fmt: skip
_SHARED4: dict[str, Any] = {
    **_GEMMA4, "num_hidden_layers": 6, "layer_types": [_SLIDING, _FULL] * 3, "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 1600, "use_double_wide_mlp": True,
}  # fmt: skip
_NO_PLE: dict[str, Any] = {"hidden_size_per_layer_input": 0}

# By name: the class, the text configuration, and the other parts' configurations.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma1": ("GemmaForCausalLM", _TEXT, {}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**_TEXT, "sliding_window": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        {},
    ),
    "gemma3_text": ("Gemma3ForCausalLM", {**_TEXT, **_LAYERS}, {}),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {**_TEXT, **_LAYERS},
        {"vision_config": _SIGLIP, "mm_tokens_per_image": 4},
    ),
    "gemma3n": (
        "Gemma3nForConditionalGeneration",
        {
            **_TEXT, **_LAYERS, "num_hidden_layers": 6, "layer_types": [_SLIDING, _FULL] * 3,
            "intermediate_size": [96] * 6,
            "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 1600,
            "laurel_rank": 8, "altup_num_inputs": 4, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0, 0.0, 0.0],
            "final_logit_softcapping": 30.0,
        },
        {
            "audio_config": {
                "hidden_size": 32, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 2,
                "sscp_conv_channel_size": [8, 4], "vocab_size": 8, "input_feat_size": 16,
            },
            "vision_config": {"hidden_size": 32, "vocab_size": 8},
        },
    ),
    "gemma4_e2b": ("Gemma4ForConditionalGeneration", _SHARED4, {"vision_config": _VISION4, "audio_config": _AUDIO4}),
    "gemma4_26b": (
        "Gemma4ForConditionalGeneration",
        {
            **_GEMMA4, **_NO_PLE, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
            "moe_intermediate_size": 32, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
        },
        {"vision_config": _VISION4},
    ),
    "gemma4_31b": (
        "Gemma4ForConditionalGeneration",
        {**_GEMMA4, **_NO_PLE, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
        {"vision_config": _VISION4},
    ),
    "gemma4_12b": (
        "Gemma4UnifiedForConditionalGeneration",
        {**_GEMMA4},
        {
            "vision_config": {"patch_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32},
            "audio_config": {"audio_embed_dim": 16},
        },
    ),
}  # fmt: skip


def build(name: str) -> PreTrainedModel:
    """The model in float32, with weights large enough for its parts to matter; the same ones each time.

    Of Gemma 3n the language part: its image tower is built by timm, which is no dependency.
    """
    class_name, text, parts = MODELS[name]
    cls = getattr(transformers, class_name.replace("3nForConditionalGeneration", "3nForCausalLM"))
    whole = "ForConditional" in cls.__name__
    return of_config(cls, cls.config_class(text_config=text, **parts) if whole else cls.config_class(**text))


def of_config(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model of a configuration with the weights that `build` gives."""
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config).float().eval()
    with torch.no_grad():
        for tensor_name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0.0, 0.08)
            elif "norm" in tensor_name:
                p.add_(0.1 * torch.randn_like(p))
            elif "layer_scale." in tensor_name:  # of timm's blocks, which would be next to nothing
                p.fill_(0.1)
    return model


def save(name: str, folder: Path) -> Path:
    """A folder as it is published: its tensors' names, its tokenizer, what its layers store and never use."""
    model = build(name)
    if name == "gemma3n":
        _save_gemma3n(model, folder)
    else:
        model.save_pretrained(folder)
    _add_idle_tensors(model.config.get_text_config(), folder)
    family = FAMILIES[json.loads((folder / "config.json").read_text("utf-8"))["model_type"]]
    tokenizer_of(FORMS[family.form].name).save_pretrained(folder)
    return folder


def _save_gemma3n(model: PreTrainedModel, folder: Path) -> None:
    """The language part under its published names, the real audio tower, and something in the image tower's place."""
    _, text, parts = MODELS["gemma3n"]
    config = Gemma3nConfig(text_config=text, **parts)
    config.architectures = ["Gemma3nForConditionalGeneration"]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    named = model.state_dict().items()
    tensors = {n.replace("model.", "model.language_model.", 1): t for n, t in named if n != "lm_head.weight"}
    torch.manual_seed(1)
    audio = Gemma3nAudioEncoder(config.audio_config).state_dict()
    tensors |= {f"model.audio_tower.{n}": t for n, t in audio.items()}
    tensors["model.vision_tower.timm_model.conv_stem.conv.weight"] = torch.randn(4, 3, 3, 3)
    for part in ("embed_audio", "embed_vision"):
        tensors[f"model.{part}.embedding_projection.weight"] = torch.randn(64, 32)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def _add_idle_tensors(text: Any, folder: Path) -> None:
    """Keys and values of layers that use those of others: the published checkpoints store them."""
    shared = getattr(text, "num_kv_shared_layers", 0)
    if not shared:
        return
    tensors = load_file(folder / "model.safetensors")
    prefix = next(n.split("layers.")[0] for n in tensors if "language_model.layers." in n)
    for i in range(text.num_hidden_layers - shared, text.num_hidden_layers):
        for name, shape in (("k_proj", (32, 64)), ("v_proj", (32, 64)), ("k_norm", (16,))):
            tensors[f"{prefix}layers.{i}.self_attn.{name}.weight"] = torch.full(shape, 0.5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def original(folder: Path) -> PreTrainedModel:
    """The folder as its own class loads it, float32 (of Gemma 3n the language part, see `build`)."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "gemma3n":
        renamed = {r"^model\.language_model\.": "model."}
        return Gemma3nForCausalLM.from_pretrained(
            folder, config=config.text_config, key_mapping=renamed, dtype=torch.float32
        ).eval()
    cls = getattr(transformers, config.architectures[0])
    model: PreTrainedModel = cls.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def linear_layers(folder: Path) -> tuple[list[str], list[torch.Size]]:
    """Names in the checkpoint, and shapes [out, in], of the projections of all blocks of the language part."""
    text = AutoConfig.from_pretrained(folder).get_text_config()
    first_shared = text.num_hidden_layers - getattr(text, "num_kv_shared_layers", 0)
    names, shapes = [], []
    for name, tensor in load_file(folder / "model.safetensors").items():
        found = re.search(r"^(?!.*tower).*layers\.(\d+)\.(?:self_attn|mlp)\.([qkvo]|gate|up|down)_proj\.weight$", name)
        if found and not (found[2] in "kv" and int(found[1]) >= first_shared):
            names.append(name.removesuffix(".weight"))
            shapes.append(tensor.shape)
    return names, shapes


def published_layer(name: str) -> str:
    """A layer's name in the original class and in an adapter that fits it, from its name in the checkpoint."""
    return name.replace("language_model.model.", "model.language_model.")


if __name__ == "__main__":
    for n in sys.argv[1:] or MODELS:
        m = build(n)
        out = m(input_ids=torch.arange(10, 40)[None])
        print(n, type(m).__name__, sum(p.numel() for p in m.parameters()), out.logits.std().item())


def save_empty_weights(folder: Path) -> None:
    """A model.safetensors with every tensor that a folder's config.json asks for, and no number: the file is sparse."""
    header, end = {}, 0
    for name, tensor in empty_model(AutoConfig.from_pretrained(folder).get_text_config()).named_parameters():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
