"""Adapters as PEFT stores them, of this project and of others: what fits a model is used exactly, all else is refused.

The names of layers in the file are those of the class that was trained: the whole model with its towers, the same in
Transformers before 4.52, or the language part alone. They are mapped as the names of weights are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from gemma_tune.errors import UserError
from gemma_tune.models.adapters.adapter_config import MERGE, stored_config
from gemma_tune.models.family import FAMILIES, language_name
from gemma_tune.models.finite import not_finite, say_not_finite
from gemma_tune.models.folders import ADAPTER_WEIGHTS
from gemma_tune.models.foreign import check_bounds
from gemma_tune.models.towers.tower_names import OF_TOWERS
from gemma_tune.models.unwrap import plain_name
from gemma_tune.untrusted import time_limit

TIED = ("model.embed_tokens", "lm_head")
PEFT_PREFIX = "base_model.model."
_OF_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
PATTERNS = 3.0  # seconds for all of its regular expressions on all layers
OF_LORA = re.compile(r"^(.+?)\.(lora_(?:A|B)\.weight|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?)$")
_OF_TOKENS = ".token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class StoredAdapter:
    """A LoRA adapter, in the names of the language part.

    Attributes:
        config: PEFT's configuration; every adapted layer is named, with its rank.
        weights: By the names that PEFT loads them by.
        targets: `target_modules` as it is stored.
        reaches: The layers of the tied pair, embedding and head, that it adapts.
    """

    config: LoraConfig
    weights: dict[str, torch.Tensor]
    targets: Any
    reaches: tuple[str, ...]


def read_adapter(folder: Path, plain: nn.Module) -> StoredAdapter:
    """Reads an adapter for a language part, loaded or on the meta device.

    Args:
        folder: PEFT's folder.
        plain: The language part without an adapter.

    Raises:
        UserError: As `stored_config`, or weights that have no place in this model.
    """
    config = stored_config(folder)
    check_bounds(str(folder), folder)
    try:
        stored = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: {ADAPTER_WEIGHTS} can't be used ({str(error).splitlines()[0]}): it is cut off, or no "
            "safetensors file; fetch it again, or take an earlier checkpoint."
        ) from error
    if found := [name.removeprefix(PEFT_PREFIX) for name in not_finite(stored.items())]:
        raise UserError(
            f"{folder}: {say_not_finite(found)}, and all that a model computes with this adapter would be; fetch it "
            "again, or, where training made it, take an earlier checkpoint."
        )
    reader = _Reader(folder, plain, config)
    for key, weight in stored.items():
        reader.add(key.removeprefix(PEFT_PREFIX), weight)
    try:
        with time_limit(PATTERNS):
            return reader.finish()
    except (re.error, TimeoutError) as error:
        raise UserError(
            f"{folder}: a regular expression in its adapter_config.json can't be used ({error}); write the names of "
            "the layers there."
        ) from error


def _matching(pattern: dict[str, int], names: Iterable[str]) -> dict[str, int]:
    """What a pattern of PEFT's says of some names, by these names."""
    found = {name: get_pattern_key(pattern.keys(), name) for name in names}
    return {name: pattern[key] for name, key in found.items() if key in pattern}


class _Reader:
    """Sorts the weights of a file into those of layers, of tokens and of whole modules."""

    def __init__(self, folder: Path, plain: nn.Module, config: LoraConfig) -> None:
        self._folder, self._config = folder, config
        self._layers = dict(plain.named_modules())
        self._family = FAMILIES[plain.config.model_type]
        self._weights: dict[str, torch.Tensor] = {}
        self._adapted: dict[str, str] = {}  # the name in the file, by that in the language part
        self._saved: set[str] = set()
        self._foreign: list[str] = []
        self._experts: set[str] = set()
        if strange := [n for n in config.target_parameters or () if not self._family.is_expert(f".{n}")]:
            raise UserError(
                f"{folder}: it adapts {strange[0]} (target_parameters), which is no tensor of fused experts of "
                f"{self._family.name}; {MERGE}."
            )

    def add(self, key: str, weight: torch.Tensor) -> None:
        """One weight of the file, by its name there without PEFT's prefix; those of towers are read where they are."""
        if OF_TOWERS.search(key):
            return
        found = OF_LORA.match(key)
        if found is None and not key.endswith(_OF_TOKENS):
            self._add_whole(key, weight)
            return
        name, part = (found[1], found[2]) if found else (key.removesuffix(_OF_TOKENS), _OF_TOKENS[1:])
        own = language_name(name)
        if found and self._is_of_experts(own):
            self._experts.add(plain_name(own))
            self._weights[f"{PEFT_PREFIX}{own}.{part}"] = weight
            return
        if own not in self._layers:
            self._foreign.append(name)
            return
        if found:
            self._adapted[own] = name
        self._weights[f"{PEFT_PREFIX}{own}.{part}"] = weight

    def _is_of_experts(self, own: str) -> bool:
        """Whether a layer is PEFT's wrapper around fused experts, one for each tensor, the one inside the other."""
        name = plain_name(own)
        named = bool(self._config.target_parameters) and name.rpartition(".")[2] == self._family.experts
        return named and name in self._layers

    def _add_whole(self, key: str, weight: torch.Tensor) -> None:
        name, _, own = key.replace(".base_layer.", ".").rpartition(".")
        name = language_name(name)
        if name in TIED:
            there = self._layers[TIED[0]].weight
            same = there.shape == weight.shape and (there.is_meta or torch.equal(weight.to(there), there))
            if not same or name.rpartition(".")[2] in (self._config.modules_to_save or ()):
                raise UserError(
                    f"{self._folder}: it holds a whole {name.rpartition('.')[2]} of {len(weight)} rows (a resized "
                    f"embedding, or modules_to_save), where the base has {len(there)} rows that are the embedding and "
                    f"the head, too; {MERGE}."
                )
        elif name in self._layers and name.endswith(tuple(map(language_name, self._config.modules_to_save or ()))):
            self._saved.add(name)
            self._weights[f"{PEFT_PREFIX}{name}.{own}"] = weight
        else:
            self._foreign.append(key)

    def finish(self) -> StoredAdapter:
        """What was read, with the configuration that places it."""
        self._refuse_foreign()
        config, targets = self._config, self._config.target_modules
        tensors = {name.rpartition(".")[2] for name in config.target_parameters or ()}
        fused = [f"{module}.{name}" for module in sorted(self._experts) for name in sorted(tensors)]
        ranks = _matching(config.rank_pattern, fused)
        alphas = _matching(config.alpha_pattern, fused)
        for own, name in self._adapted.items():
            if not any(check_target_module_exists(config, n) for n in (name, own)):
                raise UserError(
                    f"{self._folder}: the file holds weights of {name}, which its target_modules "
                    f"({targets}) don't name; PEFT would leave them out."
                )
            rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
            alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.lora_alpha)
            ranks |= {own: rank} if rank != config.r else {}
            alphas |= {own: alpha} if alpha != config.lora_alpha else {}
            self._check_shape(own, name, rank)
        if config.target_parameters and not self._experts:
            raise UserError(
                f"{self._folder}: its target_parameters ({', '.join(config.target_parameters)}) are adapted, and the "
                "file holds no weights of theirs; fetch it again."
            )
        config.rank_pattern, config.alpha_pattern = ranks, alphas
        config.target_modules = set(self._adapted)
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
        config.modules_to_save = sorted(self._saved) or None
        config.trainable_token_indices = self._tokens()
        reached = tuple(name for name in TIED if name in self._adapted)
        return StoredAdapter(config, self._weights, targets, reached)

    def _refuse_foreign(self) -> None:
        if any(_OF_ONE_EXPERT.search(name) for name in self._foreign):
            raise UserError(
                f"{self._folder}: it holds the adapter of each expert by itself, as vLLM serves it, and PEFT has no "
                "place for that; name the adapter that it was made from (adapter/ of its run), which has the same "
                "numbers, or serve it with vLLM."
            )
        if self._foreign:
            there = [n for n, m in self._layers.items() if isinstance(m, nn.Linear) and self._family.reaches(n)]
            raise UserError(
                f"{self._folder}: an adapter of another model: {len(self._foreign)} of its weights don't fit this base "
                f"(for example {self._foreign[0]}); its layers are {there[0]} to {there[-1]}. Name the adapter's own "
                "base in its adapter_config.json."
            )

    def _check_shape(self, own: str, name: str, rank: int) -> None:
        layer = self._layers[own]
        out, into = layer.weight.shape if not hasattr(layer, "in_features") else (layer.out_features, layer.in_features)
        expected = {"lora_A.weight": (rank, into), "lora_B.weight": (out, rank)}
        if isinstance(layer, nn.Embedding):
            expected = {"lora_embedding_A": (rank, out), "lora_embedding_B": (into, rank)}
        for part, shape in expected.items():
            weight = self._weights.get(f"{PEFT_PREFIX}{own}.{part}")
            if weight is None or tuple(weight.shape) != shape:
                has = "is missing" if weight is None else f"is {tuple(weight.shape)}"
                raise UserError(
                    f"{self._folder}: an adapter of another model: {name}.{part} {has}, and this base needs {shape}. "
                    "Name the adapter's own base in its adapter_config.json."
                )

    def _tokens(self) -> list[int] | None:
        asked = self._config.trainable_token_indices
        if not asked:
            return None
        places = asked if isinstance(asked, dict) else {TIED[0]: asked}
        names = {language_name(name).rpartition(".")[2] for name in places}
        if not {"embed_tokens"} <= names <= {"embed_tokens", "lm_head"} or len({*map(tuple, places.values())}) > 1:
            raise UserError(
                f"{self._folder}: its trainable_token_indices train rows of {', '.join(places)} apart, and embedding "
                f"and head are one matrix; {MERGE}."
            )
        indices = [int(i) for i in next(iter(places.values()))]
        key, embedding = f"{PEFT_PREFIX}{TIED[0]}{_OF_TOKENS}", self._layers[TIED[0]].weight
        weight = self._weights.get(key)
        if (
            weight is None
            or tuple(weight.shape) != (len(indices), embedding.shape[1])
            or max(indices) >= len(embedding)
        ):
            raise UserError(
                f"{self._folder}: its trainable_token_indices train {len(indices)} rows up to row {max(indices)}, and "
                f"the base's embedding has {len(embedding)} rows of {embedding.shape[1]}; {MERGE}."
            )
        return indices
