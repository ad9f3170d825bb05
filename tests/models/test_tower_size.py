"""Sizes of towers against the loaded ones, and the estimate of what training them takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_tower_3n import import_timm
from media_models import media_folder, processor_folder
from slow import slow_after
from test_memory import composed
from transformers import Gemma3Config, Gemma3nConfig, SiglipVisionConfig

from gemma_tune.config import ModelConfig
from gemma_tune.models.estimate.memory import estimate
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.estimate.tower_size import adapted_layers, empty_towers, unadapted_tower
from gemma_tune.models.language_part import load_language_part
from gemma_tune.models.load import family_of, load_config
from gemma_tune.models.published import published
from gemma_tune.models.source import Source
from gemma_tune.models.towers.tower_files import load_towers


def loaded(folder: Path) -> tuple[Any, Any]:
    """The towers, and the configuration."""
    source = Source(str(folder), None, None, str(folder))
    cfg, config = ModelConfig(model_name_or_path=str(folder), dtype="float32", device="cpu"), load_config(source)
    language = load_language_part(cfg, source, config, family_of(source).language_class)
    return load_towers(cfg, source, config, language), config


@pytest.mark.parametrize("family", slow_after(1, ("gemma3", "gemma3n", "gemma4_e2b", "gemma4_31b")))
def test_towers_as_they_are_loaded(family: str, tmp_path: Path) -> None:
    """What a trained tower keeps for the backward pass is counted within a factor of 1.5."""
    towers, config = loaded(media_folder(family, tmp_path))
    size = size_of(config)
    assert size.towers is not None
    named = {name: p.numel() for name, p in towers.whole.named_parameters()}
    assert size.tower_parameters == size.towers.parameters == sum(named.values())
    projector = ("multi_modal_projector", "embed_vision", "embed_audio")
    assert size.towers.projector_parameters == sum(n for name, n in named.items() if name.startswith(projector))
    weights, kept = {p.untyped_storage().data_ptr() for p in towers.whole.parameters()}, {}

    def look(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    towers.whole.requires_grad_(True)
    pixels, tokens = _image(family, config)
    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        output = towers.whole.vision_tower(**pixels)
    assert output.last_hidden_state.requires_grad
    counted = 4 * tokens * size.towers.patches * size.towers.width
    assert 1 / 1.5 < sum(kept.values()) / counted < 1.5


def _image(family: str, config: Any) -> tuple[dict[str, torch.Tensor], int]:
    if family == "gemma3":
        side = config.vision_config.image_size
        return {"pixel_values": torch.randn(16, 3, side, side)}, 16 * config.mm_tokens_per_image
    if family == "gemma3n":
        sides = config.vision_config.model_args["pretrained_cfg_overlay"]["input_size"]
        return {"pixel_values": torch.rand(2, *sides)}, 2 * config.vision_soft_tokens_per_image
    vision, side = config.vision_config, 12
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(1, -1, 2)
    pixels = torch.rand(1, side * side, 3 * vision.patch_size**2)
    return {"pixel_values": pixels, "pixel_position_ids": places}, side * side // vision.pooling_kernel_size**2


@pytest.mark.parametrize("family", ["gemma3", "gemma3n", "gemma4_e2b"])
def test_what_adapters_reach_of_the_image_tower(family: str, tmp_path: Path) -> None:
    """Of Gemma 3n's, all convolutions, nothing; of its projector for images and its tower for sound, something."""
    if family == "gemma3n":
        import_timm()
    whole = empty_towers(load_config(Source(str(processor_folder(family, tmp_path)), None, None, str(tmp_path))))
    reached = {name.split(".")[0] for name in adapted_layers(whole)}
    assert unadapted_tower(whole) == (family == "gemma3n")
    assert ("vision_tower" in reached) == (family != "gemma3n")
    assert family == "gemma3" or reached >= {"embed_vision", "audio_tower", "embed_audio"}


@pytest.mark.slow
def test_gemma_3ns_towers_have_their_published_size() -> None:
    import_timm()
    towers, known = size_of(Gemma3nConfig()).towers, published("gemma-3n-E4B")
    assert towers is not None and known is not None and towers.parameters == known.tower_parameters


def test_the_estimate_with_towers() -> None:
    """Gemma 3 4B by hand: 4,096 patches of 27 layers an image; frozen towers keep none of it."""
    cfg, size = composed("full_sft", "gemma3_4b_it", "train.per_device_train_batch_size=2")
    text = estimate(cfg, size, True, 1024)
    assert "towers" not in text and size.tower_parameters == 419_816_304
    vision = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=896,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    towers = size_of(
        Gemma3Config(text_config={"hidden_size": 2560, "num_hidden_layers": 1}, vision_config=vision)
    ).towers
    assert towers is not None and towers.parameters == size.tower_parameters and towers.patches == 16
    size = replace(size, towers=towers, media_tokens=256)
    frozen = estimate(cfg, size, True, 1024)
    assert frozen["towers"] == pytest.approx(size.tower_parameters * 4 / 2**30)
    cfg, full = composed("lora_sft", "gemma3_4b_it", "train.per_device_train_batch_size=2", "adapter.r=16")[0], cfg
    cfg.model.train_towers = "lora"
    adapters = 16 * 27 * (4 * (1152 + 1152) + 2 * (1152 + 4304))
    projector = 1152 * 2560 + 1152  # trained whole
    by_hand = 4 * size.tower_parameters + 16 * adapters + 12 * projector
    assert estimate(cfg, size, True, 1024)["towers"] == pytest.approx(by_hand / 2**30)
    cfg = full
    cfg.model.train_towers = "full"
    trained = estimate(cfg, size, True, 1024)
    assert trained["towers"] == pytest.approx(size.tower_parameters * 16 / 2**30)  # weight, gradient, two of Adam
    by_hand = 2 * 4096 * 27 * (10 * 1152 + 2 * 4304) * 2 / 2**30
    assert trained["images"] == pytest.approx(by_hand, rel=0.01)
    assert frozen["images"] == pytest.approx(by_hand / 27, rel=0.1)
    cfg.train.gradient_checkpointing = True
    assert estimate(cfg, size, True, 1024)["images"] == pytest.approx(
        by_hand / 27 + 2 * 4096 * 27 * 1152 * 2 / 2**30, rel=0.1
    )
