"""Sizes of the towers of a checkpoint, taken from instances on the meta device (no memory)."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from gemma_tune.models.family import FAMILIES
from gemma_tune.models.unwrap import plain_name

PROJECTORS = ("multi_modal_projector.", "embed_vision.", "embed_audio.")
_IN_NO_TOWER = ("language_model.", "audio_tower.", *PROJECTORS)
# What no adapter reaches: the language model, and a head of SigLIP's whose output nothing reads
_NOT_ADAPTED = ("language_model.", "vision_tower.head.")


@dataclass(frozen=True)
class TowerSize:
    """Sizes of the towers beside a language part.

    Attributes:
        parameters: All of their weights, the projectors' included.
        projector_parameters: Those of the projectors.
        adapted_widths: Sum of in + out over the layers that adapters reach; one of rank r has r times as many weights.
        saved_parameters: Weights that are trained whole beside adapters.
        num_hidden_layers: Layers of the image tower.
        hidden_size: What a layer is given for each patch.
        width: Numbers that all layers together keep for the backward pass for each patch.
        patches: Patches for each soft token of an image.
    """

    parameters: int
    projector_parameters: int
    adapted_widths: int
    saved_parameters: int
    num_hidden_layers: int
    hidden_size: int
    width: int
    patches: float


def tower_size(config: Any) -> TowerSize | None:
    """The sizes of the towers that a configuration names; None where there are none, or they can't be built here.

    A linear layer keeps its input and gives its output to the next operation, which keeps it: `width` is the sum over
    all of the image tower, twice where values are clamped before and after the layer (Gemma 4). Of Gemma 3n's, which
    convolves images of one size, the same sum over its convolutions stands for the patches of a soft token.

    Args:
        config: Of the whole checkpoint.
    """
    model, vision = empty_towers(config), getattr(config, "vision_config", None)
    if model is None or vision is None:
        return None
    try:
        convolutions = _convolutions(model)
    except Exception:  # sizes that don't go together fail the classes in any way
        return None
    named = [(n, p.numel()) for n, p in model.named_parameters() if not n.startswith("language_model.")]
    width = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(_IN_NO_TOWER):
            clamped = hasattr(model.get_submodule(name.rpartition(".")[0]), "input_min")
            width += (module.in_features + module.out_features) * (2 if clamped else 1)
    layers = getattr(vision, "num_hidden_layers", None) or 1
    if convolutions:  # the first ones are by far the largest: taken for one layer of several alike
        width = sum(convolutions) // config.vision_soft_tokens_per_image
        layers = max(1, sum(convolutions) // max(convolutions))
    return TowerSize(
        parameters=sum(count for _, count in named),
        projector_parameters=sum(count for name, count in named if name.startswith(PROJECTORS)),
        adapted_widths=sum(m.in_features + m.out_features for m in adapted_layers(model).values()),
        saved_parameters=sum(p.numel() for p in saved_parameters(model).values()),
        num_hidden_layers=layers,
        hidden_size=getattr(vision, "hidden_size", 0),
        width=width,
        patches=_patches(config, vision),
    )


def _convolutions(model: Any) -> list[int]:
    """Numbers that each convolution of Gemma 3n's image tower keeps for one image; none of other families.

    It keeps what it reads and what it writes, and the norm behind it both what it rescales and what it gives on.

    Args:
        model: On the meta device.
    """
    tower = getattr(getattr(model, "vision_tower", None), "timm_model", None)
    if tower is None:
        return []
    found: list[int] = []
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, given, made: found.append(given[0].numel() + 3 * made.numel()))
    tower(torch.empty((1, *tower.pretrained_cfg["input_size"]), device="meta"))
    return found


def empty_towers(config: Any) -> Any:
    """The checkpoint's class without its language model on the meta device; None where it can't be built here.

    Args:
        config: Of the whole checkpoint.
    """
    family = FAMILIES.get(config.model_type)
    if family is None or family.whole_class is None or getattr(config, "vision_config", None) is None:
        return None
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # Per-layer inputs of no layer
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            return getattr(transformers, family.whole_class)(without_language(config))
    except Exception:  # of Gemma 3n without timm, and sizes that don't go together fail the classes in any way
        return None


def adapted_layers(whole: nn.Module) -> dict[str, nn.Linear]:
    """The layers that `model.train_towers=lora` adapts: every linear one of towers and projectors, by name.

    In Gemma 4 they stand inside of what clamps their inputs and outputs.

    Args:
        whole: The checkpoint's class, with adapters or without.
    """
    linear = {plain_name(name): m for name, m in whole.named_modules() if type(m) is nn.Linear and ".lora_" not in name}
    return {name: m for name, m in linear.items() if not name.startswith(_NOT_ADAPTED)}


def unadapted_tower(whole: nn.Module) -> bool:
    """Whether the image tower has no layer that adapters reach: Gemma 3n's consists of convolutions."""
    return hasattr(whole, "vision_tower") and not any(n.startswith("vision_tower.") for n in adapted_layers(whole))


def saved_parameters(whole: nn.Module) -> dict[str, nn.Parameter]:
    """What `model.train_towers=lora` trains whole: a projector without a linear layer, as Gemma 3's, by name."""
    adapted = tuple(p for p in PROJECTORS if any(name.startswith(p) for name in adapted_layers(whole)))
    named = {n: p for n, p in whole.named_parameters() if n.startswith(PROJECTORS)}
    return {n: p for n, p in named.items() if not n.startswith(adapted)}


def _patches(config: Any, vision: Any) -> float:
    if (tokens := getattr(config, "mm_tokens_per_image", None)) is not None:
        return float((vision.image_size // vision.patch_size) ** 2 / tokens)
    if config.model_type == "gemma4":
        return float(vision.pooling_kernel_size**2)
    return 1.0


def without_language(config: Any) -> Any:
    """The configuration with a language model of no layer and no vocabulary to speak of."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers, text.layer_types = 0, []
    text.vocab_size = (text.pad_token_id or 0) + 1
    if hasattr(text, "num_kv_shared_layers"):
        text.num_kv_shared_layers = 0
    if hasattr(text, "vocab_size_per_layer_input"):
        text.vocab_size_per_layer_input = text.vocab_size
    return small
