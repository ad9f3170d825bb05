"""`export=phone`: Gemma's phone format, `quant_method="gemma"` of Transformers, from our codes.

Each output channel has one scale; codes of 8, 4 or 2 bits are packed into bytes, the first one in the lowest bits. A
linear layer has two more numbers, the scales by which its input and its output are rounded to 8 bits. The head is not
one matrix with the embedding there: where that is quantized, the same codes are written twice.
https://huggingface.co/docs/transformers/main/en/quantization/overview (integrations/gemma_quant.py)
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gemma_tune.config import ExportConfig
from gemma_tune.export.file_tensor import FileTensor, FileTensors, row_blocks
from gemma_tune.export.int4_check import FAIL, OK, CheckLine
from gemma_tune.export.merged_from_grid import dense
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.read_back import StoredTensor
from gemma_tune.export.tensors import TrainedTensors, by_rows
from gemma_tune.export.transformers_folder import write_folder
from gemma_tune.export.verify import ArtifactDiffers
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.load import family_of
from gemma_tune.models.unwrap import language_part
from gemma_tune.quant.activations import ActivationScales, activation_scales
from gemma_tune.quant.grid import Encoded
from gemma_tune.quant.plan import Plan

_ACTIVATIONS = ("input_activation_scale", "output_activation_scale")
_SCALES = (".weight_scale", ".embedding_scale", *_ACTIVATIONS)
# Names of a linear layer's parts behind that of its weight; see `write_folder`
_OF_LINEAR = ("", "_scale", *(f".{name}" for name in _ACTIVATIONS))


def export(given: ModelOnGrid, folder: Path, options: ExportConfig) -> list[Path]:
    """A `FolderWriter` of packed codes with their scales, and the activations' scales; every other tensor is dense."""
    model, plan, trained = given.model, given.plan, given.trained
    base, family = language_part(model), family_of(given.source)
    embeddings = {f"{n}.weight" for n, m in base.named_modules() if isinstance(m, nn.Embedding)}
    scales, tied = activation_scales(model), base.config.tie_word_embeddings
    parts: dict[str, FileTensors] = {}
    for name in plan.grids:
        stored = _codes_and_scales(name, trained, plan.grids[name].bits)
        if name in embeddings:
            parts[name] = dict(zip((".embedding_quantized", ".embedding_scale"), stored, strict=True))
        if name not in embeddings or (tied and name == family.tied[0]):
            rounded = (FileTensor.of(torch.tensor(value)) for value in scales.get(name, ActivationScales(0.0, 0.0)))
            head = name if name not in embeddings else family.tied[1]
            parts[head] = dict(zip(_OF_LINEAR, (*stored, *rounded), strict=True))
    return write_folder(
        {name: dense(name, trained, plan) for name in trained},
        torch.bfloat16,
        quantization_config(plan, base, CheckpointFiles.of(given.source, family), tied),
        model,
        given.tokenizer,
        folder,
        options,
        given.source,
        parts,
        untied=tied and family.tied[0] in plan.grids,
    )


def quantization_config(plan: Plan, base: Any, checkpoint: CheckpointFiles, tied: bool) -> dict[str, Any]:
    """The `quantization_config` of config.json: bits by patterns of names, and the layers that stay as they are.

    Args:
        plan: Which tensor is on which grid.
        base: The language part.
        checkpoint: The files whose towers stay dense.
        tied: Whether the head is the embedding.
    """
    bits = {_layer(name): grid.bits for name, grid in plan.grids.items()}
    if tied and "embed_tokens" in bits:
        bits["lm_head"] = bits["embed_tokens"]
    usual = Counter(bits.values()).most_common(1)[0][0] if bits else 4
    others = {}
    for other in sorted({*bits.values()} - {usual}):
        names = "|".join(re.escape(name) for name, own in bits.items() if own == other)
        others[rf"(?:^|\.)(?:{names})$"] = {"num_bits": other}
    layers = [_layer(f"{n}.weight") for n, m in base.named_modules() if isinstance(m, nn.Linear | nn.Embedding)]
    inside = re.compile(r"\.(base_layer|lora_[AB]\..*|lora_embedding.*)$")  # of an adapter
    kept = dict.fromkeys(name for name in layers if name not in bits and not inside.search(name))
    of_towers = (name.removeprefix("model.") for name in checkpoint.files if checkpoint.family.is_tower(name))
    towers = dict.fromkeys(name.split(".")[0] for name in of_towers)
    return {
        "quant_method": "gemma",
        "num_bits": usual,
        "module_quant_configs": others,
        "quantize_embeddings": any("embed_tokens" in name for name in bits),
        "modules_to_not_convert": [*kept, *(rf"(model\.)?{re.escape(part)}" for part in towers)],
    }


def _layer(tensor: str) -> str:
    """A layer's name as it is in every class: Transformers puts different prefixes before it."""
    return tensor.removesuffix(".weight").removeprefix("model.")


def _codes_and_scales(name: str, trained: TrainedTensors, bits: int) -> tuple[FileTensor, FileTensor]:
    rows, width = by_rows(trained, name).shape

    def tensor(columns: int, dtype: torch.dtype, part: Any) -> FileTensor:
        return FileTensor((rows, columns), dtype, lambda: map(part, by_rows(trained, name).blocks))

    codes = tensor(width * bits // 8, torch.int8 if bits == 8 else torch.uint8, partial(_packed, bits=bits))
    return codes, tensor(1, torch.float32, lambda block: block.scales)


def _packed(block: Encoded, bits: int) -> torch.Tensor:
    if bits == 8:
        return block.codes
    several = 8 // bits
    codes = (block.codes.to(torch.int32) + 2 ** (bits - 1)).unflatten(-1, (-1, several))
    return (codes << torch.arange(several, dtype=torch.int32) * bits).sum(-1).to(torch.uint8)


def stored_bits(quantization: Mapping[str, Any], layer: str) -> int:
    """Bits of a layer's codes, by the `quantization_config` of a folder in this format."""
    others = (quantization.get("module_quant_configs") or {}).items()
    bits = next((other["num_bits"] for pattern, other in others if re.search(pattern, layer)), quantization["num_bits"])
    return int(bits)


def read_phone(folder: Path) -> Iterator[tuple[str, StoredTensor]]:
    """The language part of a folder, by its names there; Transformers' own functions unpack the codes.

    Raises:
        ArtifactDiffers: A file that can't be read, or codes without scales.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = FAMILIES[config["model_type"]]
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as stored:
                names = set(stored.keys())
                for name in sorted(names):
                    if not family.is_tower(name) and not name.endswith(_SCALES):
                        own = family.language_name(re.sub(r"\.embedding_quantized$", ".weight", name))
                        yield from _unpacked(own, name, stored, names, config["quantization_config"])
        except SafetensorError as error:
            raise ArtifactDiffers(f"{file}: it can not be read ({error}).") from error


def _unpacked(
    own: str, name: str, stored: Any, names: set[str], quantization: dict[str, Any]
) -> Iterator[tuple[str, StoredTensor]]:
    tensor = stored.get_tensor(name)
    if tensor.dtype not in (torch.uint8, torch.int8):
        for rows in row_blocks(tuple(tensor.shape)):
            yield own, StoredTensor(tensor[rows].float(), whole=tuple(tensor.shape))
        return
    beside = re.sub(r"_quantized$", "", name) + "_scale"
    if beside not in names:
        raise ArtifactDiffers(f"{own}: {beside} is not there.")
    scales, bits = stored.get_tensor(beside), stored_bits(quantization, name.rpartition(".")[0])
    width = tensor.shape[1] * 8 // bits
    from transformers.integrations import gemma_quant  # older versions have none

    unpack = {4: gemma_quant._unpack_int4, 2: gemma_quant._unpack_int2}.get(bits, lambda codes, _: codes)
    for rows in row_blocks((tensor.shape[0], width)):
        codes = unpack(tensor[rows], width)
        yield own, StoredTensor(codes * scales[rows], Encoded(codes, scales[rows]), whole=(tensor.shape[0], width))


def activations_line(name: str, folder: Path, model: Any) -> CheckLine:
    """Compares the activations' scales in a folder with those of the training forward.

    Args:
        name: The format's name, for people.
        folder: The folder.
        model: The trained model.
    """
    expected = {
        f"{tensor.removesuffix('.weight')}.{end}": value
        for tensor, scales in activation_scales(model).items()
        for end, value in zip(_ACTIVATIONS, scales, strict=True)
    }
    family = FAMILIES[json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]]
    found: dict[str, float] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            ours = (n for n in stored.keys() if n.endswith(_ACTIVATIONS))  # noqa: SIM118 (not a mapping)
            found |= {family.language_name(n): float(stored.get_tensor(n)) for n in ours}
    wrong = [n for n in sorted({*expected, *found}) if expected.get(n, 0.0) != found.get(n)]
    return CheckLine(
        f"{name}: scales of activations",
        "those of the training forward, to the bit",
        f"{len(found) - len(wrong)} of {len(found)}" + ("" if expected else "; none rounds"),
        FAIL if wrong else OK,
        f"{wrong[0]}: {found.get(wrong[0])}, and {expected.get(wrong[0], 0.0)} was trained." if wrong else "",
    )
