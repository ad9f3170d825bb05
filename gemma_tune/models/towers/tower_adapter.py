"""LoRA adapters on towers and projectors: placed by PEFT, and stored in the adapter's file as PEFT has them there.

`PeftModel.from_pretrained(checkpoint's own class, folder)` loads those of the language model and of the towers at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn

from gemma_tune.config import AdapterConfig
from gemma_tune.models.adapters.merging import ADAPTER
from gemma_tune.models.adapters.stored_adapter import PEFT_PREFIX
from gemma_tune.models.estimate.tower_size import adapted_layers
from gemma_tune.models.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gemma_tune.models.kernels.lora import FUSED_LAYERS
from gemma_tune.models.towers.stored_towers import StoredTowers

_BASE_CHANGED = ("pissa", "olora", "loftq")  # initialisations of the language part's adapters alone
_INSIDE = "model."  # where the class with the head has what `whole` is


def placed_layers(whole: nn.Module) -> dict[str, Any]:
    """PEFT's layers around those of the towers, by name; empty without adapters."""
    return {name: module for name, module in whole.named_modules() if isinstance(module, LoraLayer)}


def place_new(whole: nn.Module, adapter: AdapterConfig) -> None:
    """Puts new adapters, which are trained, on all layers of `adapted_layers`.

    Rank, alpha, dropout, DoRA and rsLoRA are the language model's; its layers, ranks and alphas by name, and what
    begins by changing the base (PiSSA, OLoRA, LoftQ), are its own.

    Args:
        whole: The checkpoint's class, in float32.
        adapter: The configuration.
    """
    init = adapter.init_lora_weights
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=list(adapted_layers(whole)),
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
        init_lora_weights=True if str(init).startswith(_BASE_CHANGED) else init,
    )
    _place(whole, config)


def place_stored(whole: nn.Module, stored: StoredTowers) -> None:
    """Puts the adapters of a file on the towers, without gradients.

    Args:
        whole: The checkpoint's class, in float32.
        stored: What `read_towers` gave for it.
    """
    _place(whole, stored.config)
    outcome = set_peft_model_state_dict(whole, stored.weights, ADAPTER)
    if outcome.unexpected_keys:
        raise RuntimeError(f"PEFT has no place for {outcome.unexpected_keys[0]} of the towers")
    whole.requires_grad_(False)


def _place(whole: nn.Module, config: LoraConfig) -> None:
    config._register_custom_module(FUSED_LAYERS)
    inject_adapter_in_model(config, whole, ADAPTER)


def add_to_file(whole: nn.Module, saved: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Adds the towers' adapters to the adapter of the language part in a folder of PEFT's.

    Args:
        whole: The checkpoint's class with its adapters.
        saved: Projectors that are trained whole, every tensor by its name in it.
        folder: Where the adapter is, with the names of the checkpoint's own class.
    """
    stored = load_file(folder / ADAPTER_WEIGHTS)
    matrices = get_peft_model_state_dict(whole, adapter_name=ADAPTER, save_embedding_layers=False)
    for name, tensor in {**matrices, **saved}.items():
        stored[f"{PEFT_PREFIX}{_INSIDE}{name}"] = tensor.detach().cpu().contiguous()
    save_file(stored, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    layers = placed_layers(whole)
    others = [name for name, _ in whole.named_modules() if name not in layers]
    own = rf"{re.escape(_INSIDE)}({_expression(layers, others)})"
    config["target_modules"] = rf"({config['target_modules']})|{own}" if config["target_modules"] else own
    modules = sorted({_INSIDE + name.partition(".")[0] for name in saved})
    config["modules_to_save"] = [*(config["modules_to_save"] or []), *modules] or None
    for key, values in (
        ("rank_pattern", {name: layer.r[ADAPTER] for name, layer in layers.items()}),
        ("alpha_pattern", {name: layer.lora_alpha[ADAPTER] for name, layer in layers.items()}),
    ):
        other = config["r" if key == "rank_pattern" else "lora_alpha"]
        config[key] = {**_exceptions(values, config[key], other, others), **config[key]}  # PEFT takes the first
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _exceptions(values: Mapping[str, Any], pattern: Mapping[str, Any], other: Any, others: list[str]) -> dict[str, Any]:
    """What a pattern needs besides, so that each layer gets its value.

    Args:
        values: The layers' values.
        pattern: The language part's.
        other: The value where no pattern fits.
        others: Names of other modules, which it must not fit.
    """
    said = {name: pattern.get(get_pattern_key(pattern.keys(), _INSIDE + name), other) for name in values}
    lacking = sorted((value, name) for name, value in values.items() if said[name] != value)
    groups = {value: [name for _, name in group] for value, group in groupby(lacking, key=lambda item: item[0])}
    return {_expression(names, [*others, *(values.keys() - set(names))]): v for v, names in groups.items()}


def _expression(names: Collection[str], others: Iterable[str]) -> str:
    """A regular expression for layers: with any numbers where no other module fits it, else name by name."""
    exact = sorted(map(re.escape, names))
    short = "|".join(dict.fromkeys(re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", name) for name in exact))
    return "|".join(exact) if any(re.fullmatch(short, name) for name in others) else short
