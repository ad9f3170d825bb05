"""Models of the published shapes with random weights, made on the device from their configurations, and rows for them.

No checkpoint is read or written. Arms of a comparison share the frozen weights of one model.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
import transformers
from bitsandbytes.nn import Linear4bit, Params4bit
from datasets import Dataset
from torch import nn
from transformers import AutoConfig

from gemma_tune.models.family import FAMILIES
from gemma_tune.models.four_bit import keep_layout
from gemma_tune.models.published import published

# By the Hub's name: the recipe's word for the model, and the small one of the same class in its place (`--tiny`).
SHAPES = {
    "gemma-3-1b": ("model=gemma3_1b_it", "gemma3_text"),
    "gemma-3-4b": ("model=gemma3_4b_it", "gemma3_text"),
    "gemma-4-E2B": ("model=gemma4_e2b_it", "gemma4_e2b"),
}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def config_of(name: str, tiny: bool, **changed: Any) -> Any:
    """The language part's configuration of a published checkpoint, or of a small model of its class."""
    found = published(name)
    assert found is not None
    return AutoConfig.for_model(found.model_type, **{**(_small_text(name) if tiny else found.text), **changed})


def _small_text(name: str) -> dict[str, Any]:
    from small_models import MODELS  # imports more classes than the published shapes need

    return MODELS[SHAPES[name][1]][1]


def built(config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model with random weights, the same ones each time, on the device."""
    cls = getattr(transformers, FAMILIES[config.model_type].language_class)
    torch.manual_seed(0)
    with torch.device(device()):
        return cls._from_config(copy.deepcopy(config), dtype=dtype, attn_implementation="sdpa")


def sharing(model: Any) -> Any:
    """A copy with modules and configuration of its own, and the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def in_four_bit(model: Any, storage: torch.dtype = torch.uint8, double: bool = True) -> Any:
    """Rounds the linear layers to NF4 in place, as `recipe=qlora_sft` loads them from a checkpoint."""
    family = FAMILIES[model.config.model_type]
    how = {"quant_type": "nf4", "compress_statistics": double, "quant_storage": storage}
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or not family.reaches(name):
            continue
        sizes, kind = (layer.in_features, layer.out_features), layer.weight.dtype
        made = Linear4bit(*sizes, bias=False, compute_dtype=kind, device="meta", **how)
        made.weight = Params4bit(layer.weight.data, requires_grad=False, module=made, **how).to(device())
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
    model.is_loaded_in_4bit = True  # PEFT asks for it
    keep_layout(model)
    return model


def documents(length: int) -> list[int]:
    """Tokens of the documents of one packed row: a half, a quarter, and so on down to two of the same size."""
    least = max(8, min(512, length // 8))
    found = []
    while length > 2 * least:
        found.append(length // 2)
        length -= length // 2
    return [*found, length // 2, length - length // 2]


def packed_rows(count: int, length: int, vocabulary: int) -> Dataset:
    """Full rows as TRL packs them; of each document the second half is trained."""
    rng, lengths = random.Random(0), documents(length)
    rows = []
    for _ in range(count):
        parts = [_document(rng, n, vocabulary) for n in lengths]
        ids, labels = ([token for part in parts for token in part[i]] for i in (0, 1))
        rows.append({"input_ids": ids, "labels": labels, "seq_lengths": lengths})
    return Dataset.from_list(rows)


def rows_of(lengths: list[int], vocabulary: int) -> Dataset:
    """One document a row."""
    rng = random.Random(0)
    made = [_document(rng, n, vocabulary) for n in lengths]
    return Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in made])


def _document(rng: random.Random, tokens: int, vocabulary: int) -> tuple[list[int], list[int]]:
    ids = [rng.randrange(10, vocabulary) for _ in range(tokens)]
    return ids, [-100] * (tokens // 2) + ids[tokens // 2 :]
