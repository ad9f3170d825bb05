"""Reads exported folders back, some rows at a time, with the libraries of the formats and none of our writers."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig
from safetensors import SafetensorError, safe_open

from gemma_tune.export.file_tensor import row_blocks
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

    Experts that are stored one by one come as the fused tensors that they are of.

    Raises:
        ArtifactDiffers: A safetensors file that ends too early, or a packed tensor without its parts.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = FAMILIES[config["model_type"]]
    packing = _Packing(config) if "quantization_config" in config else None
    with contextlib.ExitStack() as opened:
        stored = _Stored()
        for file in sorted(folder.glob("*.safetensors")):
            try:
                stored.add(opened.enter_context(safe_open(file, framework="pt")))
            except SafetensorError as error:
                raise ArtifactDiffers(f"{file}: {_cut(file) or f'it can not be read ({error}).'}") from error
        yield from _tensors(stored, family, packing)


class _Stored:
    """The tensors of several files."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}

    def add(self, file: Any) -> None:
        """Those of one more file."""
        self.files |= dict.fromkeys(file.keys(), file)

    def read(self, name: str) -> torch.Tensor:
        """One of them.

        Raises:
            ArtifactDiffers: There is none of this name.
        """
        if name not in self.files:
            raise ArtifactDiffers(f"{name}: it is not there.")
        found: torch.Tensor = self.files[name].get_tensor(name)
        return found


def _tensors(stored: _Stored, family: Family, packing: _Packing | None) -> Iterator[tuple[str, StoredTensor]]:
    experts: dict[str, set[int]] = {}
    for name in stored.files:
        if family.is_tower(name) or name.endswith((".weight_scale", ".weight_shape")):
            continue
        own = family.language_name(name)
        if one := _EXPERT.match(name):
            experts.setdefault(one["module"], set()).add(int(one["expert"]))
        elif name.endswith("_packed"):
            for tensor in _unpacked(stored, packing, name.removesuffix("_packed")):
                yield own.removesuffix("_packed"), tensor
        else:
            tensor = stored.read(name)
            for rows in row_blocks(tuple(tensor.shape)):
                yield own, StoredTensor(tensor[rows].float(), whole=tuple(tensor.shape))
    for module, numbers in experts.items():
        for fused, layers in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
            for tensor in _fused(stored, packing, module, max(numbers) + 1, layers):
                yield family.language_name(f"{module}.{fused}"), tensor


_EXPERT = re.compile(r"(?P<module>.*\.experts)\.(?P<expert>\d+)\.\w+\.weight")


def _unpacked(stored: _Stored, packing: _Packing | None, stem: str) -> Iterator[StoredTensor]:
    if packing is None:
        raise ArtifactDiffers(f"{stem}: it is packed, and config.json doesn't say how.")
    return packing.unpacked(stem, *(stored.read(stem + end) for end in ("_packed", "_scale", "_shape")))


def _fused(
    stored: _Stored, packing: _Packing | None, module: str, count: int, layers: Sequence[str]
) -> Iterator[StoredTensor]:
    """Experts that are stored one by one as one tensor, [experts, out, in], in its row blocks."""
    some: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    waiting: list[slice] | None = None
    for expert in range(count):
        parts = [part for x in layers for part in _unpacked(stored, packing, f"{module}.{expert}.{x}.weight")]
        coded = [part.encoded for part in parts if part.encoded is not None]
        some.append(
            (
                torch.cat([part.values for part in parts]),
                torch.cat([codes for codes, _ in coded]),
                torch.cat([scales for _, scales in coded]),
            )
        )
        whole = (count, *some[0][0].shape)
        waiting = waiting or row_blocks(whole)
        if len(some) == len(range(count)[waiting[0]]):
            values, codes, scales = map(torch.stack, zip(*some, strict=True))
            yield StoredTensor(values, Encoded(codes, scales), whole=whole)
            some, waiting = [], waiting[1:]


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
