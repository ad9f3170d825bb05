"""`export=adapter_vllm`: a LoRA adapter on fused experts with the adapter of each expert by itself, as vLLM reads it.

PEFT stores the factors of all experts of a tensor in two matrices: A is [E·r, in], expert after expert, and B is
[out, r·E], in which the expert is the fastest index. vLLM reads a pair for each of `experts.3.gate_proj`, `up_proj` and
`down_proj` (vllm/lora/lora_weights.py, `pack_moe`). gate_proj and up_proj are the halves of gate_up_proj, so they have
the same A. What is adapted beside the experts keeps its names and its numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gemma_tune.errors import UserError
from gemma_tune.export.int4_check import FAIL, OK, CheckLine
from gemma_tune.models.adapters.adapter_config import parts_of, stored_config
from gemma_tune.models.adapters.merging import ADAPTER, expert_factors
from gemma_tune.models.adapters.stored_adapter import StoredAdapter, read_adapter
from gemma_tune.models.estimate.size import empty_model
from gemma_tune.models.family import language_name
from gemma_tune.models.folders import ADAPTER_CONFIG, ADAPTER_VLLM, ADAPTER_WEIGHTS, read_adapter_config
from gemma_tune.models.unwrap import language_part, plain_name, stored_tensors
from gemma_tune.run.manifest import write_json
from gemma_tune.validation.adapter_vllm import not_in_adapter_vllm

_PREFIX = "base_model.model."
_WEIGHT = re.compile(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight")
# The layers of an expert that a fused tensor holds, in the order of its rows
_LAYERS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_MOST = 1e-12  # of the largest number that a layer adds: in float64 the order of summation is all that differs
_ADDED = f"{ADAPTER_VLLM}: what it adds to each expert and layer"
_MUST = f"what PEFT's adapter adds, in float64, within {_MOST:g} of the largest number"


class _Factors(NamedTuple):
    """A [r, in] and B [out, r] of one layer, and its alpha."""

    a: torch.Tensor
    b: torch.Tensor
    alpha: float


def check_adapter(folder: Path, config: LoraConfig) -> None:
    """Raises UserError for an adapter that vLLM serves as it is, or in no form.

    Args:
        folder: Where it is.
        config: PEFT's configuration.
    """
    if why := not_in_adapter_vllm(parts_of(folder, config)):
        raise UserError(f"{folder}: {why}")


def export(adapter: Path, model: Any, tokenizer: Any, folder: Path) -> list[Path]:
    """Writes the adapter, the tokenizer with its template, and the generation config.

    Args:
        adapter: PEFT's folder of the adapter.
        model: The model that it is on, with or without it: its configuration and generation config.
        tokenizer: Its tokenizer.
        folder: Where to write.

    Returns:
        The files written.

    Raises:
        UserError: The adapter can't be read, or is none of experts.
    """
    plain = empty_model(model.config.get_text_config())
    stored = read_adapter(adapter, plain)
    check_adapter(adapter, stored.config)
    layers = _layers(adapter, stored, {name: tuple(tensor.shape) for name, tensor in stored_tensors(plain)})
    weights = {f"{_PREFIX}{name}.lora_A.weight": part.a for name, part in layers.items()}
    weights |= {f"{_PREFIX}{name}.lora_B.weight": part.b for name, part in layers.items()}
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned: safetensors stores no tensor that is a part of another one, and gate_proj and up_proj have one A
    save_file({name: weight.clone() for name, weight in weights.items()}, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    write_json(folder / ADAPTER_CONFIG, _described(read_adapter_config(adapter), stored.config, layers))
    tokenizer.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    return sorted(p for p in folder.iterdir() if p.is_file())


def _layers(adapter: Path, stored: StoredAdapter, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Factors]:
    """The factors of each layer, by its name in the file to be written.

    Args:
        adapter: The adapter's folder: the names in its file.
        stored: What is in it, by names of the language part.
        shapes: Of the base's tensors.
    """
    config, found = stored.config, dict[str, _Factors]()
    keys = load_file(adapter / ADAPTER_WEIGHTS)
    if other := [key for key in keys if not _WEIGHT.fullmatch(key)]:
        raise UserError(f"{adapter}: it holds {other[0]}, and vLLM serves adapters on linear layers and experts alone.")
    names = {language_name(match[1]): match[1] for match in map(_WEIGHT.fullmatch, keys) if match}
    names = {own: name for own, name in names.items() if f"{_PREFIX}{own}.lora_A.weight" in stored.weights}  # no towers
    for own, name in names.items():
        a, b = (stored.weights[f"{_PREFIX}{own}.lora_{part}.weight"] for part in "AB")
        module, its = plain_name(own), plain_name(name)
        fused = {tensor: shapes[key] for tensor in _LAYERS if (key := f"{module}.{tensor}") in shapes}
        if not fused:
            found[its] = _Factors(a, b, config.alpha_pattern.get(own, config.lora_alpha))
            continue
        # PEFT has a wrapper for each tensor, the one inside the other: which is which is seen by their shapes
        tensor = next((t for t, (_, out, into) in fused.items() if (len(b), a.shape[1]) == (out, into)), None)
        if tensor is None or len(a) % fused[tensor][0] or len(a) != b.shape[1]:
            raise UserError(
                f"{adapter}: an adapter of another model: {name} holds matrices of {tuple(a.shape)} and "
                f"{tuple(b.shape)}, and this base's experts are {', '.join(map(str, fused.values()))}."
            )
        alpha = config.alpha_pattern.get(f"{module}.{tensor}", config.lora_alpha)
        found |= _of_experts(its, tensor, a, b, fused[tensor][0], alpha)
    for name in dict.fromkeys(map(plain_name, names.values())):
        for tensor in _LAYERS:
            found |= _idle(name, tensor, shapes.get(f"{language_name(name)}.{tensor}"), config, found)
    return found


def _of_experts(
    module: str, tensor: str, a: torch.Tensor, b: torch.Tensor, experts: int, alpha: float
) -> dict[str, _Factors]:
    """A fused tensor's factors, [E·r, in] and [out, r·E], expert by expert."""
    a, b = a.reshape(experts, -1, a.shape[1]), b.reshape(len(b), -1, experts)
    rows = len(b) // len(_LAYERS[tensor])
    return {
        f"{module}.{expert}.{layer}": _Factors(a[expert], b[n * rows : (n + 1) * rows, :, expert], alpha)
        for expert in range(experts)
        for n, layer in enumerate(_LAYERS[tensor])
    }


def _idle(
    module: str, tensor: str, shape: tuple[int, ...] | None, config: LoraConfig, found: Mapping[str, _Factors]
) -> dict[str, _Factors]:
    """Factors that add nothing, of a fused tensor that isn't adapted where the other one is: vLLM needs both."""
    if shape is None or f"{module}.0.{_LAYERS[tensor][0]}" in found:
        return {}
    experts, out, into = shape
    a, b = torch.zeros(experts * config.r, into), torch.zeros(out, config.r * experts)
    return _of_experts(module, tensor, a, b, experts, config.lora_alpha)


def _described(stored: dict[str, Any], config: LoraConfig, layers: Mapping[str, _Factors]) -> dict[str, Any]:
    """adapter_config.json: the layers by their last names; patterns for what has another rank or alpha than most."""
    ranks, alphas = dict[str, int](), dict[str, float]()
    for name, part in layers.items():
        pattern = re.sub(r"(\\\.experts\\\.)\d+(?=\\\.)", r"\1\\d+", re.escape(name))
        ranks |= {pattern: len(part.a)} if len(part.a) != config.r else {}
        alphas |= {pattern: part.alpha} if part.alpha != config.lora_alpha else {}
    return stored | {
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "init_lora_weights": True,
        "bias": "none",
        **dict.fromkeys(("target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern")),
    }


def added_line(folder: Path, model: Any) -> CheckLine:
    """Reads a folder again: s·B·A of every layer in it must be what the trained adapter adds to that layer.

    Args:
        folder: The folder.
        model: The PeftModel that was trained.
    """
    try:
        config, stored = stored_config(folder), load_file(folder / ADAPTER_WEIGHTS)
    except (UserError, OSError, SafetensorError) as error:
        return CheckLine(_ADDED, _MUST, "not read", FAIL, f"{folder}: it can't be read: {error}.")
    names = {language_name(match[1]): match[1] for match in map(_WEIGHT.fullmatch, stored) if match}
    count, problems = 0, list[str]()
    for own, expected in _added(language_part(model)):
        count += 1
        name = names.pop(own, None)
        found = None if name is None else _written(name, config, stored)
        problems += [] if found is not None and _is_same(found, expected) else [own]
    problems += [own for own, name in names.items() if _written(name, config, stored).any()]
    said = f"{problems[0]}: it adds other numbers, or is not there." if problems else ""
    good = count - min(len(problems), count)
    return CheckLine(_ADDED, _MUST, f"{good:,} of {count:,} matrices", FAIL if problems or not count else OK, said)


def _written(name: str, config: LoraConfig, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """s·B·A of a layer of the file in float64, with PEFT's rules for its rank and alpha."""
    a, b = (stored[f"{_PREFIX}{name}.lora_{part}.weight"].double() for part in "AB")
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank) * b @ a


def _is_same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= _MOST * expected.abs().max())


def _added(base: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What a trained adapter adds to each expert's layer and to each other one, [out, in] in float64."""
    for name, module in base.named_modules():
        if isinstance(module, ParamWrapper):
            a, b = (part.detach().double().cpu() for part in expert_factors(module, ADAPTER))
            for expert in range(len(a)):
                added = module.scaling[ADAPTER] * b[expert] @ a[expert]
                layers = _LAYERS[module.parameter_name]
                for layer, part in zip(layers, added.chunk(len(layers)), strict=True):
                    yield f"{plain_name(name)}.{expert}.{layer}", part
        elif isinstance(module, LoraLayer):
            a, b = (part[ADAPTER].weight.detach().double().cpu() for part in (module.lora_A, module.lora_B))
            yield plain_name(name), module.scaling[ADAPTER] * b @ a
