"""What an adapter's file holds of the towers for images and sound: matrices of their layers, and projectors, whole.

The names in the file are those that PEFT gives them around the checkpoint's own class, in Transformers of today or
before 5.0, or, in a checkpoint of a training, those beside the language part.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import nn

from gemma_tune.errors import UserError, first_line
from gemma_tune.models.adapters.adapter_config import MERGE, stored_config
from gemma_tune.models.adapters.stored_adapter import OF_LORA, PATTERNS, PEFT_PREFIX
from gemma_tune.models.estimate.tower_size import empty_towers
from gemma_tune.models.folders import ADAPTER_WEIGHTS
from gemma_tune.models.towers.tower_names import OF_TOWERS, trains_towers
from gemma_tune.untrusted import time_limit

IN_CHECKPOINTS = "towers.whole."  # beside the language part, while they are trained
_OLDER = ("vision_tower.vision_model.", "vision_tower.")


@dataclass(frozen=True)
class StoredTowers:
    """What was trained of the towers, by names in the checkpoint's class.

    Attributes:
        config: PEFT's configuration, in which every adapted layer is named, with its rank.
        weights: The adapters' matrices, by the names that PEFT loads them by.
        saved: Tensors that were trained whole.
    """

    config: LoraConfig
    weights: dict[str, torch.Tensor]
    saved: dict[str, torch.Tensor]


def check_stored_towers(folder: Path, config: Any) -> None:
    """Raises UserError where an adapter was trained with towers that a checkpoint doesn't have.

    Args:
        folder: PEFT's folder.
        config: The base's configuration.
    """
    if not trains_towers(folder):
        return
    whole = empty_towers(config)
    if whole is not None:
        read_towers(folder, whole)
    elif getattr(config, "vision_config", None) is None:
        raise UserError(
            f"{folder}: it was trained with towers for images or audio, and this base is a language part alone; name "
            "the whole checkpoint as its base in its adapter_config.json."
        )


def read_towers(folder: Path, whole: nn.Module) -> StoredTowers | None:
    """Reads the towers' part of an adapter; None where nothing of them was trained.

    Args:
        folder: PEFT's folder.
        whole: The checkpoint's class without adapters, loaded or on the meta device.

    Raises:
        UserError: As `stored_config`, or weights that have no place in these towers.
    """
    config, stored = stored_config(folder), _tower_weights(folder / ADAPTER_WEIGHTS)
    if not any(weight.any() for name, weight in stored.items() if ".lora_A" not in name):
        return None
    layers, parameters = dict(whole.named_modules()), dict(whole.named_parameters())
    weights, saved, named = dict[str, torch.Tensor](), dict[str, torch.Tensor](), dict[str, str]()
    for key, weight in stored.items():
        found = OF_LORA.match(key)
        name = found[1] if found else key.replace(".base_layer.", ".")
        own = _own_name(name, layers if found else parameters)
        if own is None:
            raise UserError(f"{folder}: its {key} has no place in the towers of this base; {MERGE}.")
        if found:
            named[own] = name
            weights[f"{own}.{found[2]}"] = weight
        else:
            saved[own] = weight
    for own in named:
        _check_layer(folder, own, layers[own], weights)
    if wrong := [n for n, weight in saved.items() if parameters[n].shape != weight.shape]:
        shapes = f"{tuple(saved[wrong[0]].shape)}, and this base needs {tuple(parameters[wrong[0]].shape)}"
        raise UserError(f"{folder}: an adapter of another model: its {wrong[0]} is {shapes}.")
    try:
        with time_limit(PATTERNS):
            return StoredTowers(_placed(folder, config, named, weights), weights, saved)
    except (re.error, TimeoutError) as error:
        raise UserError(
            f"{folder}: a regular expression in its adapter_config.json can't be used ({error})."
        ) from error


def _tower_weights(file: Path) -> dict[str, torch.Tensor]:
    """The towers' tensors of an adapter's file, without PEFT's prefix."""
    try:
        with safe_open(file, framework="pt") as stored:
            names = [name for name in stored.keys() if OF_TOWERS.search(name)]  # noqa: SIM118
            return {name.removeprefix(PEFT_PREFIX): stored.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: it can't be read ({first_line(error)}).") from error


def _own_name(name: str, there: Mapping[str, Any]) -> str | None:
    """A name in the checkpoint's class, from that in the file."""
    name = name.removeprefix(IN_CHECKPOINTS).removeprefix("model.")
    return next((n for n in (name, name.replace(*_OLDER)) if n in there), None)


def _check_layer(folder: Path, own: str, layer: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    if type(layer) is not nn.Linear:
        raise UserError(f"{folder}: it adapts {own}, which is no linear layer; {MERGE}.")
    a, b = (weights.get(f"{own}.lora_{part}.weight") for part in "AB")
    rank = 0 if a is None else len(a)
    wanted = (rank, layer.in_features), (layer.out_features, rank)
    if a is None or b is None or (tuple(a.shape), tuple(b.shape)) != wanted:
        found = " and ".join("missing" if t is None else str(tuple(t.shape)) for t in (a, b))
        raise UserError(
            f"{folder}: an adapter of another model: the matrices of {own} are {found}, and this base's layer is "
            f"{layer.in_features} to {layer.out_features}."
        )


def _placed(
    folder: Path, stored: LoraConfig, named: Mapping[str, str], weights: Mapping[str, torch.Tensor]
) -> LoraConfig:
    """The configuration that names each adapted layer, with its rank and alpha.

    Args:
        folder: The adapter's.
        stored: Its configuration.
        named: The layers' names in the file, by those in the checkpoint's class.
        weights: The matrices.
    """
    config = copy.copy(stored)
    config.rank_pattern, config.alpha_pattern = {}, {}
    for own, name in named.items():
        config.rank_pattern[own] = len(weights[f"{own}.lora_A.weight"])
        if name.startswith(IN_CHECKPOINTS):  # where patterns and targets are those of the language part
            continue
        if not check_target_module_exists(stored, name):
            raise UserError(
                f"{folder}: the file holds weights of {name}, which its target_modules ({stored.target_modules}) don't "
                "name; PEFT would leave them out."
            )
        pattern = get_pattern_key(stored.alpha_pattern.keys(), name)
        config.alpha_pattern[own] = stored.alpha_pattern.get(pattern, stored.lora_alpha)
    config.target_modules = list(named)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.modules_to_save = config.trainable_token_indices = config.target_parameters = None
    return config
