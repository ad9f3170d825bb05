"""GGUF files for llama.cpp, Ollama and LM Studio: with the codes of the training forward, or in one type of ggml."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
    quants,
    size_label,
)

from gemma_tune.export.gguf_metadata import add_metadata, architecture_of, check_config
from gemma_tune.export.gguf_tokenizer import add_tokenizer
from gemma_tune.export.tensors import TrainedTensors, by_rows
from gemma_tune.models.family import FAMILIES, Family
from gemma_tune.models.size import empty_model
from gemma_tune.quant.grid import Encoded, Grid
from gemma_tune.quant.plan import KEPT_16, Plan

_LAYER = re.compile(r"^.*\.layers\.\d+\.")
# The order of a layer's tensors in the file: that of the forward pass.
_LAYER_ORDER = ("input_", "self_attn.", "post_attention_", "pre_feedforward_", "mlp.", "post_feedforward_")

# What a file is made of: the plan of the codes, or one type for all tensors but the norms.
FileTypes: TypeAlias = Plan | torch.dtype | GGMLQuantizationType

_DENSE = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}
_FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}


def export(
    weights: TrainedTensors,
    config: Any,
    tokenizer: Any,
    generation_config: Any,
    types: FileTypes,
    file: Path,
    *,
    name: str,
    license: str | None = None,
    sixteen: torch.dtype = torch.bfloat16,
) -> Path:
    """Writes a complete GGUF file of a language model, some rows at a time.

    Args:
        weights: Every tensor of the language part: codes and scales of those that the plan has on a grid, floats of
            the others. Of a tied head and embedding there is the embedding.
        config: The model's configuration, or that of its language part.
        tokenizer: The tokenizer with the chat template that the model is served with.
        generation_config: Stop tokens, and how answers are sampled.
        types: The plan of the codes; or one type for all tensors but the norms, which are always float32. In Q8_0,
            which holds 32 numbers a block, rows of another width are float16, as in llama.cpp's own converter.
        file: Where to write; it has this name once it is whole.
        name: The model's name, for people.
        license: Its licence, by the Hub's name of it.
        sixteen: The type of the plan's 16-bit tensors.

    Returns:
        The file.

    Raises:
        UserError: llama.cpp can't compute the configuration or hold the tokenizer.
        ValueError: Tensors are missing, of another shape, or not as the plan says.
    """
    config = config.get_text_config()
    check_config(config)
    family, shapes = FAMILIES[config.model_type], tensor_shapes(config)
    architecture = str(family.gguf)
    kinds = {n: tensor_type(n, shape, types, sixteen) for n, shape in shapes.items()}
    if strange := sorted({*shapes} - {*weights} | {*weights} - {*shapes, *family.tied}):
        raise ValueError(f"not the tensors of this model: {strange[:5]}")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    writer = GGUFWriter(part, architecture)
    try:
        _describe(writer, family, shapes, kinds, name, license)
        add_metadata(writer, config, generation_config)
        stops = generation_config.eos_token_id
        add_tokenizer(writer, tokenizer, config.vocab_size, [stops] if isinstance(stops, int) else stops)
        _announce(writer, architecture, config.num_hidden_layers, shapes, kinds)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for own, shape in shapes.items():
            given, blocks = by_rows(weights, own)
            if given != shape:
                raise ValueError(f"{own}: its shape is {given}, and the configuration says {shape}")
            add_one = family.norm_adds_one and _is_norm(own)
            coded = isinstance(types, Plan) and own in types.grids
            bits = (_bits(own, block, kinds[own], add_one, coded) for block in blocks)
            data = _Data(shape, kinds[own], bits)
            writer.write_tensor_data(cast("np.ndarray[Any, Any]", data))
        writer.close()
        os.replace(part, file)
    except BaseException:  # Ctrl-C, too
        writer.close()
        part.unlink(missing_ok=True)
        raise
    return file


def _announce(
    writer: GGUFWriter,
    architecture: str,
    layers: int,
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, GGMLQuantizationType],
) -> None:
    """Names every tensor, its shape and its type, in the order in which their data will follow."""
    names = get_tensor_name_map(architecture_of(architecture), layers)
    for own, shape in shapes.items():
        stored = names.get_name(own, try_suffixes=(".weight",))
        if stored is None:
            raise ValueError(f"{own}: llama.cpp has no such tensor in {architecture}")
        writer.add_tensor_info(stored, shape, np.dtype(np.float32), _size(shape, kinds[own]), raw_dtype=kinds[own])


def _describe(
    writer: GGUFWriter,
    family: Family,
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, GGMLQuantizationType],
    name: str,
    license: str | None,
) -> None:
    sizes = {n: int(np.prod(shape)) for n, shape in shapes.items()}
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(sum(sizes.values()), sum(sizes.values()), 0, 0))
    if license:
        writer.add_license(license)
    # The file's type is that of its projections
    projection = next(n for n in shapes if family.reaches(n.removesuffix(".weight")))
    writer.add_file_type(_FILE_TYPES[kinds[projection]])
    writer.add_quantization_version(GGML_QUANT_VERSION)


def tensor_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Every tensor of a language part with its shape, in the order of the file; of a tied pair there is the embedding.

    The names and shapes are those of the model on the meta device.
    """
    _, head = FAMILIES[config.model_type].tied
    shapes = {name: tuple(p.shape) for name, p in empty_model(config).named_parameters()}
    if config.tie_word_embeddings:
        shapes.pop(head, None)
    found: dict[str, tuple[int, ...]] = {}
    for layer, names in groupby(shapes, _layer_of):
        found |= {name: shapes[name] for name in (sorted(names, key=_place_in_layer) if layer else names)}
    return found


def _layer_of(name: str) -> str:
    found = _LAYER.match(name)
    return found.group() if found else ""


def _place_in_layer(name: str) -> int:
    own = _LAYER.sub("", name)
    return next((i for i, start in enumerate(_LAYER_ORDER) if own.startswith(start)), len(_LAYER_ORDER))


def _is_norm(name: str) -> bool:
    return name.removesuffix(".weight").endswith("norm")


def tensor_type(
    name: str, shape: tuple[int, ...], types: FileTypes, sixteen: torch.dtype = torch.bfloat16
) -> GGMLQuantizationType:
    """The type that a tensor has in the file.

    Args:
        name: Its name in the language part.
        shape: Its shape.
        types: What the file is made of.
        sixteen: The type of the plan's 16-bit tensors.
    """
    if _is_norm(name):
        return GGMLQuantizationType.F32
    if isinstance(types, torch.dtype):
        return _DENSE[types]
    if isinstance(types, GGMLQuantizationType):
        return types if shape[-1] % GGML_QUANT_SIZES[types][0] == 0 else GGMLQuantizationType.F16
    if grid := types.grids.get(name):
        return grid_type(grid)
    return _DENSE[sixteen if types.kept[name] == KEPT_16 else torch.float32]


def grid_type(grid: Grid) -> GGMLQuantizationType:
    """The GGUF type whose blocks hold a grid's codes unchanged."""
    return GGMLQuantizationType.Q4_0 if grid.bits <= 4 else GGMLQuantizationType.Q8_0


def _size(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape) // block * size)


class _Data:
    """What the package's writer takes for an array, computed while it is written."""

    def __init__(self, shape: tuple[int, ...], kind: GGMLQuantizationType, blocks: Iterator[np.ndarray[Any, Any]]):
        self.nbytes, self._blocks = _size(shape, kind), blocks

    def tofile(self, file: BinaryIO) -> None:
        """Writes the bytes."""
        for block in self._blocks:
            block.tofile(file)


def _bits(
    name: str, weight: torch.Tensor | Encoded, kind: GGMLQuantizationType, add_one: bool, coded: bool
) -> np.ndarray[Any, Any]:
    """The bytes of some rows."""
    if coded != isinstance(weight, Encoded):
        raise ValueError(f"{name}: the file has it as {kind.name}, but it is given as {type(weight).__name__}")
    if isinstance(weight, Encoded):
        return _blocks(name, weight, kind)
    weight = weight.detach().cpu()
    if add_one:
        weight = 1.0 + weight.float()  # llama.cpp multiplies by what is stored
    return bits_of(name, weight, kind)


def bits_of(name: str, weight: torch.Tensor, kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """The bytes of some rows of numbers: rounded to a float type, or quantized by the gguf package.

    Raises:
        ValueError: The type can't hold them.
    """
    dense = next((dtype for dtype, its in _DENSE.items() if its == kind), None)
    weight = weight.to(dense or torch.float32).contiguous()
    if not torch.isfinite(weight).all():
        raise ValueError(f"{name}: {kind.name} can't hold its weights: infinity or NaN")
    if dense is None:
        quantized: np.ndarray[Any, Any] = quants.quantize(weight.numpy(), kind)
        return quantized
    bits: np.ndarray[Any, Any] = (weight.view(torch.int16) if kind == GGMLQuantizationType.BF16 else weight).numpy()
    return bits


def _blocks(name: str, encoded: Encoded, kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """Blocks of a float16 scale and 32 codes; in Q4_0, byte j holds codes j (low bits) and j + 16 (high), plus 8."""
    codes = encoded.codes.cpu().unflatten(-1, (-1, GGML_QUANT_SIZES[kind][0])).numpy()
    exact = encoded.scales.cpu()
    scales = exact.half()
    lowest, highest = (-8, 7) if kind == GGMLQuantizationType.Q4_0 else (-127, 127)
    if not torch.equal(scales.float(), exact) or codes.min() < lowest or codes.max() > highest:
        raise ValueError(f"{name}: {kind.name} can't hold its codes and scales")
    if kind == GGMLQuantizationType.Q4_0:
        nibbles = (codes + 8).astype(np.uint8)
        codes = nibbles[..., :16] | nibbles[..., 16:] << 4
    bits = scales.unsqueeze(-1).view(torch.uint8).numpy()
    return np.concatenate([bits, codes.view(np.uint8)], axis=-1)
