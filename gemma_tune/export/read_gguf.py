"""Reads GGUF files back, some rows at a time, with the format's own library."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

from gemma_tune.export.file_tensor import row_blocks
from gemma_tune.export.gguf_tensors import GgufTensor, gguf_tensors, tensor_shapes
from gemma_tune.export.read_back import StoredTensor
from gemma_tune.export.verify import ArtifactDiffers
from gemma_tune.models.family import FAMILIES
from gemma_tune.quant.grid import Encoded


class _WholeReader(GGUFReader):  # type: ignore[misc]
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
    tensors = open_gguf(file).tensors
    return sum(int(t.n_bytes) for t in tensors), sum(int(t.n_elements) for t in tensors)


def gguf_widths(file: Path) -> set[int]:
    """The numbers of weights that the rows of a GGUF file's matrices have.

    Raises:
        ArtifactDiffers: As `gguf_size`.
    """
    return {int(t.shape[0]) for t in open_gguf(file).tensors if len(t.shape) > 1}


def open_gguf(file: Path) -> GGUFReader:
    """The package's reader of a file, without its tokens.

    Raises:
        ArtifactDiffers: As `gguf_size`.
    """
    try:
        return _WholeReader(file)
    except (ValueError, KeyError, IndexError, UnicodeDecodeError, OSError, struct.error) as error:
        raise ArtifactDiffers(f"{file}: it can't be read: {error}.") from error


def read_gguf(file: Path, config: Any, ours: bool = True) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a GGUF file, by their names in the language part where they have one there.

    What llama.cpp has beside them (rotary frequencies, zeros that nothing uses) is left out; of a file of ours it must
    be as we write it. llama.cpp's converter writes a checkpoint's own idle keys and values there.
    An embedding with fewer rows, of the tokens that the tokenizer has, is yielded in its own shape.

    Args:
        file: The file.
        config: The language part's configuration.
        ours: Whether we have written the file.

    Raises:
        ArtifactDiffers: It is no GGUF file, or one that ends too early, or a constant of it is another one.
    """
    reader = open_gguf(file)
    try:
        architecture = str(reader.fields["general.architecture"].contents())
    except (ValueError, KeyError, IndexError, UnicodeDecodeError, OSError, struct.error) as error:
        raise ArtifactDiffers(f"{file}: it can't be read: {error}.") from error
    family = FAMILIES[config.model_type]
    if family.gguf != architecture:
        raise ArtifactDiffers(f"{file}: its architecture is {architecture}, and the model's is {family.gguf}.")
    known, shapes = {tensor.name: tensor for tensor in gguf_tensors(config)}, tensor_shapes(config)
    for tensor in reader.tensors:
        planned = known.get(tensor.name)
        whole = tuple(int(n) for n in reversed(tensor.shape))
        if planned and planned.parts == (family.tied[0],) and whole[0] < shapes[family.tied[0]][0]:
            for rows in row_blocks(whole):
                yield family.tied[0], stored_as(tensor.tensor_type, tensor.data[rows], whole=whole)
            continue
        if planned is None or whole != planned.shape:
            yield (planned.of if planned else tensor.name), StoredTensor(torch.empty(0), whole=whole)
            continue
        added = 1.0 if family.norm_adds_one and "norm" in tensor.name else 0.0
        stacked = len(planned.parts) > 1
        for i, own in enumerate(planned.parts):
            shape = shapes[own]
            data = tensor.data[i] if stacked else tensor.data[: shape[0]]
            for rows in row_blocks(shape):
                yield own, stored_as(tensor.tensor_type, data[rows], added, shape)
        if ours and (rest := _not_constant(planned, shapes, tensor)):
            raise ArtifactDiffers(f"{file}: {rest}")


def _not_constant(planned: GgufTensor, shapes: Mapping[str, tuple[int, ...]], tensor: Any) -> str | None:
    """What is wrong with that part of a tensor which holds none of the language part's numbers."""
    if len(planned.parts) > 1:
        return None
    start = shapes[planned.parts[0]][0] if planned.parts else 0
    for rows in row_blocks((planned.shape[0] - start, *planned.shape[1:])):
        part = tensor.data[start:][rows]
        found = torch.from_numpy(np.array(gguf.quants.dequantize(part, tensor.tensor_type), dtype=np.float32))
        wanted = torch.zeros_like(found) if planned.constant is None else planned.constant[rows]
        if not torch.equal(found, wanted):
            return f"{tensor.name} is not what llama.cpp needs there."
    return None


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
    lead = values.shape[:-1]
    scales = torch.from_numpy(blocks[:, :2].copy().view(np.float16).astype(np.float32)).view(*lead, -1)
    codes = torch.from_numpy(blocks[:, 2:].copy())
    if kind == GGMLQuantizationType.Q4_0:
        codes = torch.cat([codes & 15, codes >> 4], dim=-1).to(torch.int8) - 8
    codes = codes.view(torch.int8).view(*lead, -1)
    again = np.array_equal(gguf.quants.quantize(values.numpy(), kind), data)
    return StoredTensor(values, Encoded(codes, scales), again, whole=whole)
