"""`export=gguf_lora`: a LoRA adapter as a GGUF file, which llama.cpp puts onto a GGUF file of the base.

llama.cpp adds `s·B·A` to a matrix, with one `alpha` for the whole file and s = alpha / rank of the matrix
(src/llama-adapter.cpp). What PEFT scales otherwise (rsLoRA, an alpha or a rank of some layers) is multiplied into B.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, Keys
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from gemma_tune.errors import UserError
from gemma_tune.export.gguf_metadata import check_config
from gemma_tune.export.gguf_tensors import GgufNames
from gemma_tune.export.gguf_writer import gguf_writer
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, CheckLine
from gemma_tune.models.adapters.adapter_config import parts_of
from gemma_tune.models.adapters.merging import ADAPTER
from gemma_tune.models.adapters.stored_adapter import StoredAdapter, read_adapter
from gemma_tune.models.estimate.size import empty_model
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.unwrap import language_part
from gemma_tune.validation.gguf_lora import not_in_gguf_lora

_PREFIX = "base_model.model."
_MOST = 1e-5  # of the largest number that a layer adds
_UNREADABLE = (ValueError, KeyError, IndexError, OSError, UnicodeDecodeError, struct.error)
_ADDED = "gguf_lora: what it adds to each layer"
_MUST = f"what PEFT's adapter adds, within {_MOST:g} of the largest number"


def check_adapter(folder: Path, config: LoraConfig) -> None:
    """Raises UserError for an adapter that changes more than `s·B·A` of linear layers.

    Args:
        folder: Where it is.
        config: PEFT's configuration.
    """
    if why := not_in_gguf_lora(parts_of(folder, config)):
        raise UserError(f"{folder}: {why}")


def file_name(title: str) -> str:
    """The file's name, by the model's."""
    return f"{title}-lora.gguf"


def export(folder: Path, config: Any, file: Path, name: str) -> Path:
    """Writes a GGUF LoRA file in float32.

    Args:
        folder: PEFT's folder of the adapter.
        config: The base's configuration.
        file: Where to write.
        name: The model's name, for people.

    Returns:
        The file.

    Raises:
        UserError: The adapter is none that such a file can hold.
    """
    config = config.get_text_config()
    check_config(config)
    stored = read_adapter(folder, empty_model(config))
    check_adapter(folder, stored.config)
    architecture = str(FAMILIES[config.model_type].gguf)
    names = GgufNames(config)
    strengths = _strengths(stored)
    alpha = Counter(strengths.values()).most_common(1)[0][0] or 1.0  # llama.cpp takes 0 as no scale at all
    with gguf_writer(file, architecture) as writer:
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
        for own, strength in strengths.items():
            its = names.of(f"{own}.weight")
            if its is None:
                raise UserError(f"{folder}: it adapts {own}, and llama.cpp has no such matrix in {architecture}.")
            a, b = (stored.weights[f"{_PREFIX}{own}.lora_{part}.weight"].float() for part in "AB")
            writer.add_tensor(f"{its}.lora_a", a.contiguous().numpy())
            writer.add_tensor(f"{its}.lora_b", (b * (strength / alpha)).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return file


def _strengths(stored: StoredAdapter) -> dict[str, float]:
    """PEFT's scale of each layer times its rank, by the layer's name: the `alpha` that llama.cpp would need for it."""
    config, found = stored.config, dict[str, float]()
    for own in sorted(config.target_modules):
        rank, alpha = config.rank_pattern.get(own, config.r), config.alpha_pattern.get(own, config.lora_alpha)
        found[own] = alpha * math.sqrt(rank) if config.use_rslora else float(alpha)
    return found


def added_line(file: Path, model: Any) -> CheckLine:
    """Reads a GGUF LoRA file with the package's reader: it must add to each layer what PEFT's adapter adds to it.

    A file that isn't there is `unverified`; one that can't be read fails.

    Args:
        file: The file.
        model: The PeftModel that was trained.
    """
    base = language_part(model)
    layers = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    architecture = str(FAMILIES[base.config.get_text_config().model_type].gguf)
    names = GgufNames(base.config.get_text_config())
    problems = []
    try:
        reader = GGUFReader(file)
        said = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        tensors = {t.name: torch.from_numpy(np.array(t.data)) for t in reader.tensors}
        kinds = (said["general.type"], said["adapter.type"], said["general.architecture"])
        if kinds != ("adapter", "lora", architecture):
            problems.append(f"it is of type {', '.join(map(str, kinds))}.")
        alpha = float(said[Keys.Adapter.LORA_ALPHA])
        for name, layer in layers.items():
            its = names.of(f"{name}.weight")
            a, b = (tensors.pop(f"{its}.lora_{part}", None) for part in "ab")
            problems += _differs(name, layer, a, b, alpha)
    except FileNotFoundError as error:
        return CheckLine(_ADDED, _MUST, "not read", UNVERIFIED, f"{file}: {error.strerror}.")
    except _UNREADABLE as error:
        return CheckLine(_ADDED, _MUST, "not read", FAIL, f"{file}: it can't be read: {error}.")
    problems += [f"{name}: the trained adapter has no such tensor." for name in sorted(tensors)[:1]]
    good = len(layers) - min(len(problems), len(layers))
    return CheckLine(
        _ADDED,
        _MUST,
        f"{good} of {len(layers)} layers",
        FAIL if problems or not layers else OK,
        "".join(problems[:1]),
    )


def _differs(name: str, layer: Any, a: torch.Tensor | None, b: torch.Tensor | None, alpha: float) -> list[str]:
    expected = layer.get_delta_weight(ADAPTER).detach().float().cpu()
    if a is None or b is None:
        return [f"{name}: it is not there."]
    if (b.shape[0], a.shape[1]) != tuple(expected.shape) or a.shape[0] != b.shape[1]:
        return [f"{name}: its matrices are {tuple(a.shape)} and {tuple(b.shape)}."]
    largest = (b @ a * (alpha / len(a)) - expected).abs().max().item()
    if largest <= _MOST * expected.abs().max().item():
        return []
    return [f"{name}: it adds other numbers, by up to {largest:.2g}."]
