"""GGUF files for llama.cpp, Ollama and LM Studio: with the codes of the training forward, or in one type of ggml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    quants,
    size_label,
)

from gemma_tune.export.file_tensor import row_blocks
from gemma_tune.export.gguf_metadata import add_metadata, check_config
from gemma_tune.export.gguf_tensors import GgufTensor, gguf_tensors, tensor_shapes
from gemma_tune.export.gguf_tokenizer import add_tokenizer
from gemma_tune.export.gguf_writer import gguf_writer, write_head
from gemma_tune.export.tensors import TrainedTensors, by_rows
from gemma_tune.models.family import FAMILIES, FLOAT32, Family
from gemma_tune.quant.grid import Encoded, Grid
from gemma_tune.quant.plan import KEPT_16, Plan

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
    media: bool = False,
) -> Path:
    """Writes a complete GGUF file of a language model, some rows at a time.

    Args:
        weights: Every tensor of the language part: codes and scales of those that the plan has on a grid, floats of
            the others. Of a tied head and embedding there is the embedding.
        config: The model's configuration, or that of its language part.
        tokenizer: The tokenizer with the chat template that the model is served with.
        generation_config: Stop tokens, and how answers are sampled.
        types: The plan of the codes; or one type for all tensors but norms, scales and routers, which are always
            float32. In Q8_0, which holds 32 numbers a block, rows of another width are float16, as in llama.cpp's
            own converter.
        file: Where to write; it has this name once it is whole.
        name: The model's name, for people.
        license: Its licence, by the Hub's name of it.
        sixteen: The type of the plan's 16-bit tensors.
        media: Whether an mmproj file goes with it, for whose images and sounds the chat template then has places.

    Returns:
        The file.

    Raises:
        UserError: llama.cpp can't compute the configuration or hold the tokenizer.
        ValueError: Tensors are missing, of another shape, or not as the plan says.
    """
    config = config.get_text_config()
    check_config(config)
    family, tensors, shapes = FAMILIES[config.model_type], gguf_tensors(config), tensor_shapes(config)
    kinds = {t.name: tensor_type(family, t.of, t.shape, types, sixteen) for t in tensors}
    if strange := sorted({*shapes} - {*weights} | {*weights} - {*shapes, *family.tied}):
        raise ValueError(f"not the tensors of this model: {strange[:5]}")
    with gguf_writer(file, family.gguf) as writer:
        _describe(writer, family, tensors, kinds, name, license)
        add_metadata(writer, config, generation_config)
        stops = generation_config.eos_token_id
        stops = [stops] if isinstance(stops, int) else stops
        add_tokenizer(writer, tokenizer, config.vocab_size, stops, family.gguf_tokenizer, media)
        for t in tensors:
            kind = kinds[t.name]
            writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), _size(t.shape, kind), raw_dtype=kind)
        write_head(writer)
        for t in tensors:
            bits = _tensor_bits(t, kinds[t.name], weights, shapes, family, types)
            data = _Data(t.shape, kinds[t.name], bits)
            writer.write_tensor_data(cast("np.ndarray[Any, Any]", data))
    return file


def _tensor_bits(
    tensor: GgufTensor,
    kind: GGMLQuantizationType,
    weights: TrainedTensors,
    shapes: Mapping[str, tuple[int, ...]],
    family: Family,
    types: FileTypes,
) -> Iterator[np.ndarray[Any, Any]]:
    """The bytes of a tensor of the file, some rows at a time."""
    rows = 0
    for own in tensor.parts:
        coded = isinstance(types, Plan) and own in types.grids
        add_one = family.norm_adds_one and _is_norm(own)
        shape, blocks = by_rows(weights, own)
        if shape != shapes[own]:
            raise ValueError(f"{own}: its shape is {shape}, and the configuration says {shapes[own]}")
        rows += shape[0] if len(shape) == len(tensor.shape) else 1
        yield from (_bits(own, block, kind, add_one, coded) for block in blocks)
    if tensor.constant is not None:
        yield bits_of(tensor.name, tensor.constant, kind)
    elif rows < tensor.shape[0]:  # zeros, see `GgufTensor`
        for some in row_blocks((tensor.shape[0] - rows, *tensor.shape[1:])):
            count = min(some.stop, tensor.shape[0] - rows) - some.start
            yield bits_of(tensor.name, torch.zeros(count, *tensor.shape[1:]), kind)


def _describe(
    writer: GGUFWriter,
    family: Family,
    tensors: Sequence[GgufTensor],
    kinds: Mapping[str, GGMLQuantizationType],
    name: str,
    license: str | None,
) -> None:
    sizes = {t.name: int(np.prod(t.shape)) for t in tensors}
    experts = sum(sizes[t.name] for t in tensors if t.parts and family.is_expert(t.of))
    count = max((t.shape[0] for t in tensors if t.parts and family.is_expert(t.of)), default=0)
    total = sum(sizes.values())
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(total, total - experts, experts // max(count, 1), count))
    if license:
        writer.add_license(license)
    # The file's type is that of its projections
    projection = next(t.name for t in tensors if family.reaches(t.of.removesuffix(".weight")))
    writer.add_file_type(_FILE_TYPES[kinds[projection]])
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _is_norm(name: str) -> bool:
    return name.removesuffix(".weight").endswith("norm")


def tensor_type(
    family: Family, name: str, shape: tuple[int, ...], types: FileTypes, sixteen: torch.dtype = torch.bfloat16
) -> GGMLQuantizationType:
    """The type that a tensor has in the file.

    Args:
        family: Whose it is.
        name: Its name in the language part, or in the file where it holds none of its tensors.
        shape: Its shape.
        types: What the file is made of.
        sixteen: The type of the plan's 16-bit tensors.
    """
    if len(shape) == 1 or family.kind_of(name, len(shape)) == FLOAT32:
        return GGMLQuantizationType.F32  # norms, scales, routers
    if isinstance(types, torch.dtype):
        return _DENSE[types]
    if isinstance(types, GGMLQuantizationType):
        return types if shape[-1] % GGML_QUANT_SIZES[types][0] == 0 else GGMLQuantizationType.F16
    if grid := types.grids.get(name):
        return grid_type(grid)
    return _DENSE[sixteen if types.kept.get(name, KEPT_16) == KEPT_16 else torch.float32]


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
