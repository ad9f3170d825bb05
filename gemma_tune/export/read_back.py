"""Reads exported files back, some rows at a time, with the libraries of the formats and none of our writers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from safetensors import SafetensorError, safe_open

from gemma_tune.export.file_tensor import row_blocks
from gemma_tune.export.gguf_metadata import architecture_of
from gemma_tune.export.verify import ArtifactDiffers
from gemma_tune.models.family import FAMILIES, Family
from gemma_tune.quant.grid import Encoded


@dataclass(frozen=True)
class StoredTensor:
    """Rows of a tensor as they stand in a file, in the blocks of `row_blocks`.

    Attributes:
        values: Its numbers, decoded, float32.
        encoded: Its codes and scales, or None where it is dense.
        same_again: Whether the format's own library quantizes the values to the same bytes; None for a format that
            doesn't quantize.
        added: What the format adds to the weights (1 to a norm of Gemma 3 in GGUF).
        whole: The shape of the whole tensor; None where these are all its rows.
    """

    values: torch.Tensor
    encoded: Encoded | None = None
    same_again: bool | None = None
    added: float = 0.0
    whole: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        return tuple(self.values.shape) if self.whole is None else self.whole


def read_folder(folder: Path) -> Iterator[tuple[str, StoredTensor]]:
    """The language part of a Transformers folder, dense or packed, by its names there.

    Raises:
        ArtifactDiffers: A safetensors file that ends too early, or a packed tensor without its parts.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = FAMILIES[config["model_type"]]
    packing = _Packing(config) if "quantization_config" in config else None
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as stored:
                yield from _tensors(stored, family, packing)
        except SafetensorError as error:
            raise ArtifactDiffers(f"{file}: {_cut(file) or f'it can not be read ({error}).'}") from error


def _tensors(stored: Any, family: Family, packing: _Packing | None) -> Iterator[tuple[str, StoredTensor]]:
    for name in stored.keys():  # noqa: SIM118 (not a mapping)
        if family.is_tower(name) or name.endswith(("_scale", "_shape")):
            continue
        own = family.language_name(name)
        if not name.endswith("_packed"):
            tensor = stored.get_tensor(name)
            for rows in row_blocks(tuple(tensor.shape)):
                yield own, StoredTensor(tensor[rows].float(), whole=tuple(tensor.shape))
            continue
        own, stem = own.removesuffix("_packed"), name.removesuffix("_packed")
        if packing is None:
            raise ArtifactDiffers(f"{own}: it is packed, and config.json doesn't say how.")
        parts = (stored.get_tensor(stem + end) for end in ("_packed", "_scale", "_shape"))
        for tensor in packing.unpacked(own, *parts):
            yield own, tensor


class _Packing:
    """How the weights are packed, as config.json says."""

    def __init__(self, config: dict[str, Any]) -> None:
        (self.scheme,) = QuantizationConfig.model_validate(config["quantization_config"]).config_groups.values()
        self.dtype = getattr(torch, config["dtype"])

    def unpacked(
        self, name: str, packed: torch.Tensor, scale: torch.Tensor, shape: torch.Tensor
    ) -> Iterator[StoredTensor]:
        """Decoded as Transformers does it, in the type that the folder names."""
        bits = self.scheme.weights.num_bits
        width = packed.shape[1] * 32 // bits
        if shape.tolist() != [packed.shape[0], width] or scale.shape[1] * self.scheme.weights.group_size != width:
            raise ArtifactDiffers(
                f"{name}: its shape is said to be {tuple(shape.tolist())}, and it is packed as {tuple(packed.shape)} "
                f"with scales {tuple(scale.shape)}."
            )
        whole = (packed.shape[0], width)
        for rows in row_blocks(whole):
            codes, scales = packed[rows], scale[rows]
            size = torch.tensor([len(codes), width])
            parts = {"weight_packed": codes, "weight_scale": scales.to(self.dtype), "weight_shape": size}
            values = PackedQuantizationCompressor.decompress(parts, self.scheme)["weight"].float()
            found = Encoded(unpack_from_int32(codes, bits, torch.Size(size.tolist())), scales.float())
            yield StoredTensor(values, found, whole=whole)


def _cut(file: Path) -> str | None:
    """Which tensor is the first that lacks bytes, in a safetensors file that ends too early."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:start])
    except ValueError:
        return None
    ends = sorted((t["data_offsets"][1], name) for name, t in header.items() if name != "__metadata__")
    lost = [name for end, name in ends if start + end > len(content)]
    return f"it ends before {lost[0]} does ({len(lost)} tensors are cut off)." if lost else None


class _WholeReader(GGUFReader):
    """The package's reader, without the tokens; it names the tensor where the file ends too early."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        """Arrays are skipped: the package takes 15 seconds for the tokens of a Gemma."""
        if raw_type == GGUFValueType.ARRAY:
            start, view = orig_offs + 12, memoryview(self.data)
            kind, count = struct.unpack_from("<IQ", view, orig_offs)
            if kind == GGUFValueType.STRING:
                for _ in range(count):
                    start += 8 + struct.unpack_from("<Q", view, start)[0]
            else:
                start += count * np.dtype(self.gguf_scalar_to_np[GGUFValueType(kind)]).itemsize
            return start - orig_offs, [], [], [GGUFValueType.ARRAY]
        found: tuple[int, list[Any], list[int], list[GGUFValueType]] = super()._get_field_parts(orig_offs, raw_type)
        return found

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        for field in fields:
            _, name, _, dims, kind, offset = field.parts
            block, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType(kind[0])]
            if start_offs + int(offset[0]) + int(np.prod(dims)) // block * size > len(self.data):
                raise ValueError(f"it ends before {bytes(name).decode()} does")
        super()._build_tensors(start_offs, fields)


def gguf_size(file: Path) -> tuple[int, int]:
    """Bytes of the tensors of a GGUF file, without metadata and tokenizer, and the number of their weights.

    Raises:
        ArtifactDiffers: It is no GGUF file, or one that ends too early.
    """
    tensors = _open_gguf(file).tensors
    return sum(int(t.n_bytes) for t in tensors), sum(int(t.n_elements) for t in tensors)


def gguf_widths(file: Path) -> set[int]:
    """The numbers of weights that the rows of a GGUF file's matrices have.

    Raises:
        ArtifactDiffers: As `gguf_size`.
    """
    return {int(t.shape[0]) for t in _open_gguf(file).tensors if len(t.shape) > 1}


def _open_gguf(file: Path) -> GGUFReader:
    try:
        return _WholeReader(file)
    except (ValueError, KeyError, IndexError, UnicodeDecodeError, OSError, struct.error) as error:
        raise ArtifactDiffers(f"{file}: it can't be read: {error}.") from error


def read_gguf(file: Path, names: list[str]) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a GGUF file, by their names in the language part where they have one there.

    Args:
        file: The file.
        names: The language part's names.

    Raises:
        ArtifactDiffers: It is no GGUF file, or one that ends too early.
    """
    reader = _open_gguf(file)
    try:
        architecture = str(reader.fields["general.architecture"].contents())
    except (ValueError, KeyError, IndexError, UnicodeDecodeError, OSError, struct.error) as error:
        raise ArtifactDiffers(f"{file}: it can't be read: {error}.") from error
    family = next((family for family in FAMILIES.values() if family.gguf == architecture), None)
    if family is None:
        raise ArtifactDiffers(f"{file}: its architecture is {architecture}, which export=gguf doesn't write.")
    layers = 1 + max(int(n.split(".")[2]) for n in names if n.startswith("model.layers."))
    known = gguf.get_tensor_name_map(architecture_of(architecture), layers)
    own_names = {known.get_name(n, try_suffixes=(".weight",)): n for n in names}
    for tensor in reader.tensors:
        added = 1.0 if family.norm_adds_one and "norm" in tensor.name else 0.0
        whole = tuple(int(n) for n in reversed(tensor.shape))
        for rows in row_blocks(whole):
            part = stored_as(tensor.tensor_type, tensor.data[rows], added, whole)
            yield own_names.get(tensor.name, tensor.name), part


def stored_as(
    kind: GGMLQuantizationType, data: np.ndarray[Any, Any], added: float = 0.0, whole: tuple[int, ...] | None = None
) -> StoredTensor:
    """Rows in a type of ggml, from their bytes as the package has them.

    Args:
        kind: The type.
        data: The bytes of each row.
        added: What the format adds to the weights.
        whole: The shape of the whole tensor.
    """
    values = torch.from_numpy(np.array(gguf.quants.dequantize(data, kind), dtype=np.float32))
    if kind not in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0):
        return StoredTensor(values, added=added, whole=whole)
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.array(data).reshape(-1, size)
    scales = torch.from_numpy(blocks[:, :2].copy().view(np.float16).astype(np.float32)).view(values.shape[0], -1)
    codes = torch.from_numpy(blocks[:, 2:].copy())
    if kind == GGMLQuantizationType.Q4_0:
        codes = torch.cat([codes & 15, codes >> 4], dim=-1).to(torch.int8) - 8
    codes = codes.view(torch.int8).view(values.shape[0], -1)
    again = np.array_equal(gguf.quants.quantize(values.numpy(), kind), data)
    return StoredTensor(values, Encoded(codes, scales), again, whole=whole)
