"""The sizes of a run's artifacts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from gemma_tune.page.blocks import Block, Mono, Table
from gemma_tune.run.folder import RunFolder
from gemma_tune.untrusted import read_object

# Types in which each number is one weight; other types may pack several into one.
_ONE_EACH = ("F64", "F32", "F16", "BF16")
_PHONE_SCALES = ("weight_scale", "embedding_scale", "input_activation_scale", "output_activation_scale")


@dataclass(frozen=True)
class Size:
    """How large an artifact is.

    Attributes:
        total: Bytes of all its files.
        stored: Bytes of the tensors in them: weights and their scales, without metadata and tokenizer.
        weights: The number of weights that these hold; None where the format doesn't tell it.
    """

    total: int
    stored: int
    weights: int | None

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of the tensors, scales included, over the number of weights in them; None where that isn't known."""
        return 8 * self.stored / self.weights if self.weights else None


def total_size(parts: Sequence[Size]) -> Size:
    """Several artifacts as one."""
    known = [part.weights for part in parts if part.weights is not None]
    whole = bool(parts) and len(known) == len(parts)
    return Size(sum(p.total for p in parts), sum(p.stored for p in parts), sum(known) if whole else None)


def artifact_size(artifact: Path) -> Size:
    """Counts bytes and weights of a file, or of a folder with everything in it."""
    files = [p for p in artifact.rglob("*") if p.is_file()] if artifact.is_dir() else [artifact]
    held = [_tensors(file) for file in files if file.suffix == ".safetensors"]
    held += [_gguf(file) for file in files if file.suffix == ".gguf"]
    return replace(total_size(held), total=sum(f.stat().st_size for f in files))


def _gguf(file: Path) -> Size:
    from gemma_tune.export.read_gguf import gguf_size  # what exports loads torch and more; other modules use `Size`
    from gemma_tune.export.verify import ArtifactDiffers

    total = file.stat().st_size
    try:
        return Size(total, *gguf_size(file))
    except ArtifactDiffers:  # a damaged file is said where it is checked
        return Size(total, total, None)


def _tensors(file: Path) -> Size:
    """A safetensors file; what stands beside packed integers says how many weights they are."""
    from gemma_tune.export.mlx_folder import GROUP
    from gemma_tune.export.phone import stored_bits

    bits, weights, packed, phone = 0, 0, False, _of_phone(file)
    with safe_open(file, framework="numpy") as tensors:
        names = set(tensors.keys())
        for name in names:
            tensor = tensors.get_slice(name)
            kind, count = str(tensor.get_dtype()), math.prod(tensor.get_shape())
            size = re.search(r"\d+", kind)  # BF16, I32, F8_E4M3; none in BOOL
            bits += count * int(size[0] if size else 8)
            layer, _, part = name.rpartition(".")
            if f"{layer}.scales" in names and part in ("weight", "scales", "biases"):  # of MLX, in groups
                weights += count * GROUP if part == "scales" else 0
            elif phone and f"{name.removesuffix('_quantized')}_scale" in names:
                bits_each = stored_bits(phone, layer) if kind == "U8" else 8
                weights += count * 8 // bits_each
            elif phone and part in _PHONE_SCALES:
                continue
            elif f"{layer}.weight_packed" in names and part.startswith("weight_"):
                weights += math.prod(tensors.get_tensor(name).tolist()) if part == "weight_shape" else 0
            else:
                weights += count
                packed |= kind not in _ONE_EACH
    return Size(file.stat().st_size, bits // 8, None if packed else weights)


def _of_phone(file: Path) -> dict[str, Any]:
    """`quantization_config` of the config.json beside a file in Gemma's phone format; empty for any other."""
    try:
        stored: dict[str, Any] = read_object(file.parent / "config.json").get("quantization_config") or {}
    except (OSError, ValueError):
        return {}
    return stored if stored.get("quant_method") == "gemma" else {}


def bytes_text(count: float) -> str:
    """Bytes in decimal units: 1 MB is a million."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def sizes(folder: RunFolder, counts: Mapping[str, int] | None) -> list[Block]:
    """A row an artifact: where it is, its bytes, the bits of a weight, and how large it is against bfloat16.

    Args:
        folder: The run folder, with its result.
        counts: What was counted of the model (`WeightCounts`), where it was.
    """
    rows = []
    model = (counts["total"] - (counts["trainable"] if counts["adapted_layers"] else 0)) if counts else 0
    for name, path in folder.result.artifacts.items():
        size = artifact_size(folder.path / path)
        # An adapter is compared with its base model, a whole model with itself
        whole = max(model, size.weights or 0)
        rows.append(
            [
                name,
                Mono(path),
                bytes_text(size.total),
                f"{size.weights:,}" if size.weights else "–",
                f"{size.bits_per_weight:.2f}" if size.bits_per_weight else "–",
                f"{size.stored / (2 * whole):.1%}" if size.stored and whole else "–",
            ]
        )
    if not rows:
        return []
    head = ["what", "where", "size", "weights", "bits per weight", "of the model in bfloat16"]
    return [Table(head, rows)]
