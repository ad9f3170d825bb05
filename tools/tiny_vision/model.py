"""The embedded model with an image tower: Gemma 3's multimodal class round `data/tiny`, and its processor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from gemma_tune.run.paths import ASSETS
from tools.tiny_vision.pictures import COLUMNS, SIDE

TINY = ASSETS / "tiny"
PATCH, SOFT_TOKENS = 8, COLUMNS * COLUMNS
WIDTH, LAYERS, HEADS, INNER = 128, 4, 4, 384
IMAGE_TOKENS = {
    "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
}  # fmt: skip
POSITION = 0.5  # size of the waves in a position
# As the model is in memory, and as Google's checkpoints name it. The first that fits counts.
PUBLISHED = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def build_tokenizer() -> Any:
    """The tokenizer of `data/tiny` with the two image tokens that it lacks, at the end."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_tokens([t for t in IMAGE_TOKENS.values() if t not in tokenizer.get_vocab()], special_tokens=True)
    tokenizer._set_model_specific_special_tokens(IMAGE_TOKENS)
    # How it was read is nothing for its folder
    for name in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def build_model(tokenizer: Any, seed: int) -> Gemma3ForConditionalGeneration:
    """The model in float32: weights of `data/tiny`, and a tower and a projector that are random.

    Args:
        tokenizer: From `build_tokenizer`.
        seed: Of the random weights.
    """
    torch.manual_seed(seed)
    old = Gemma3ForCausalLM.from_pretrained(TINY, dtype=torch.float32, trust_remote_code=False, use_safetensors=True)
    text = old.config
    text.vocab_size, text.dtype = len(tokenizer), torch.float32
    text._name_or_path, text.architectures = "", None
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in IMAGE_TOKENS.items()}
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            image_size=SIDE,
            patch_size=PATCH,
            vision_use_head=False,
        ),
        mm_tokens_per_image=SOFT_TOKENS,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
        eos_token_id=text.eos_token_id,
        bos_token_id=text.bos_token_id,
        pad_token_id=text.pad_token_id,
    )
    model = Gemma3ForConditionalGeneration(config).float()
    model.generation_config = old.generation_config

    # The rows of new tokens begin at the mean of all
    weights = old.model.state_dict()
    table = weights["embed_tokens.weight"]
    new = table.mean(0, keepdim=True).expand(len(tokenizer) - len(table), -1)
    model.model.language_model.load_state_dict(weights | {"embed_tokens.weight": torch.cat([table, new])})
    model.tie_weights()

    with torch.no_grad():
        _begin(model.model.vision_tower, model.model.multi_modal_projector)
    return model


def _begin(tower: Any, projector: Any) -> None:
    """Sets weights of tower and projector at which learning begins soon; Transformers' own begin takes hours.

    - The projector, which Transformers fills with zeros, gets random weights.
    - Positions are sines and cosines of row and column, so that neighbours are alike.
    - Queries are keys at first, so that a patch looks at what is like it and near it (Mimetic Initialization of
      Self-Attention Layers, Trockman and Kolter 2023).
    - Three filters of four see edges and neither colour nor brightness, which vary most and tell nothing of a digit.
    """
    nn.init.normal_(projector.mm_input_projection_weight, std=WIDTH**-0.5)

    side, quarter = SIDE // PATCH, WIDTH // 4
    angles = torch.arange(side)[:, None] * torch.logspace(math.log10(math.pi / 2), math.log10(math.pi / 16), quarter)
    waves = torch.cat([angles.sin(), angles.cos()], -1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    tower.embeddings.position_embedding.weight.copy_(POSITION * torch.cat([rows, columns], -1).flatten(0, 1))

    filters = tower.embeddings.patch_embedding.weight
    edges = filters[: WIDTH * 3 // 4].mean(1, keepdim=True) * 3
    filters[: WIDTH * 3 // 4] = (edges - edges.mean((1, 2, 3), keepdim=True)).expand(-1, 3, -1, -1)

    for layer in tower.encoder.layers:
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        for head in range(HEADS):
            block = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            nn.init.orthogonal_(key[block])
            query[block] = key[block]


def save(model: Gemma3ForConditionalGeneration, tokenizer: Any, folder: Path) -> None:
    """Writes the checkpoint in bfloat16, its tensors named as in Google's checkpoints, with its processor.

    Args:
        model: The model; it is not changed.
        tokenizer: From `build_tokenizer`.
        folder: A new folder.
    """
    images = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    Gemma3Processor(image_processor=images, tokenizer=tokenizer, image_seq_length=SOFT_TOKENS).save_pretrained(folder)
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    for part in (config, config.text_config, config.vision_config):
        part.dtype = torch.bfloat16
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    # The head is the embedding
    weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    tensors = {_published(name): tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _published(name: str) -> str:
    for ours, theirs in PUBLISHED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)
