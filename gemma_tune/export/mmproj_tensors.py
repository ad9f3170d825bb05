"""The tensors of an mmproj file by a checkpoint's towers: llama.cpp's names, shapes, values and types.

They follow llama.cpp's own converter (conversion/gemma.py); what its programs read stands in tools/mtmd/models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
from torch.nn import functional

from gemma_tune.errors import UserError

# Ends of names that the map of the gguf package leaves as they are; the four are the bounds of a clamped layer
_BOUNDS = (".input_min", ".input_max", ".output_min", ".output_max")
_ENDS = (".weight", ".bias", *_BOUNDS)
# Names of llama.cpp's that this map lacks: Gemma 4 12B's
_UNMAPPED = re.compile(r"v\.patch_norm\.[123]\.(weight|bias)")
F16, F32 = GGMLQuantizationType.F16, GGMLQuantizationType.F32


@dataclass(frozen=True)
class TowerTensor:
    """A tensor of the file.

    Attributes:
        name: llama.cpp's name of it.
        own: The checkpoint's name of it.
        stored: What the file holds of the checkpoint's numbers, before they are rounded.
        kind: Its type in the file.
    """

    name: str
    own: str
    stored: Callable[[torch.Tensor], torch.Tensor]
    kind: GGMLQuantizationType


@dataclass(frozen=True)
class _Rules:
    """How one family's tensors become those of the file.

    Attributes:
        names: Patterns of the checkpoint's names, and what the map of the gguf package knows them by.
        values: Patterns of the checkpoint's names, and what is stored of those tensors; of others they themselves.
        kinds: Patterns of the checkpoint's names, and the types that llama.cpp needs them in.
        unused: Patterns of the checkpoint's names that no forward pass reads.
    """

    names: Mapping[str, str]
    values: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
    kinds: Mapping[str, GGMLQuantizationType]
    unused: Mapping[str, bool] = field(default_factory=dict)


def _plus_one(weight: torch.Tensor) -> torch.Tensor:
    return weight.float() + 1.0  # llama.cpp multiplies by what is stored


def _patches(weight: torch.Tensor) -> torch.Tensor:
    """A layer on a patch's pixels, [out, rows · columns · 3], as a convolution's kernel, [out, 3, rows, columns]."""
    side = round((weight.shape[1] // 3) ** 0.5)
    return weight.reshape(weight.shape[0], side, side, 3).permute(0, 3, 1, 2).contiguous()


def _by_colours(weight: torch.Tensor) -> torch.Tensor:
    """Of a patch's pixels in the last dimension, [..., rows · columns · 3], in the order [..., 3 · rows · columns]."""
    side = round((weight.shape[-1] // 3) ** 0.5)
    pixels = weight.reshape(*weight.shape[:-1], side, side, 3)
    return pixels.movedim(-1, -3).reshape(weight.shape).contiguous()


def _by_axes(table: torch.Tensor) -> torch.Tensor:
    """A table of positions, [positions, 2, width], as one of columns and one of rows, [2, positions, width]."""
    return table.permute(1, 0, 2).contiguous()


def _vector(value: torch.Tensor) -> torch.Tensor:
    return value.reshape(1)


def _of_channels(weight: torch.Tensor) -> torch.Tensor:
    """A depthwise convolution's kernel, [channels, 1, K], without its middle dimension."""
    return weight.reshape(weight.shape[0], weight.shape[2])


_RULES = {
    "gemma3": _Rules(
        {
            r"^(?:model\.)?vision_tower\.(?:vision_model\.)?": "vision_tower.vision_model.",
            r"^model\.multi_modal_projector\.": "multi_modal_projector.",
            r"mm_input_projection_weight$": "mm_input_projection.weight",
        },
        {r"mm_soft_emb_norm\.weight$": _plus_one},
        {r"mm_input_projection_weight$": F16, r"\.embeddings\.": F32},
        {r"vision_tower\.(?:vision_model\.)?head\.": True},  # SigLIP's own, of configurations that don't leave it out
    ),
    "gemma4": _Rules(
        {
            r"^model\.vision_tower\.encoder\.": "vision_model.model.",
            r"^model\.audio_tower\.": "conformer.",
            r"\.linear\.": ".",  # clamped layers
            r"(position_embedding_table|per_dim_scale)$": r"\1.weight",
        },
        {
            r"patch_embedder\.input_proj\.weight$": _patches,
            r"\.(input|output)_(min|max)$": _vector,
            r"per_dim_scale$": lambda scale: functional.softplus(scale.float()),
            r"depthwise_conv1d\.weight$": _of_channels,
        },
        {r"audio_tower.*conv.*\.weight$": F32, r"position_embedding_table$": F32},
    ),
    "gemma4_unified": _Rules(
        {  # as published, and as Transformers' class has them
            r"^(?:model\.)?(?:vision_embedder|embed_vision)\.": "v.",
            r"^v\.patch_dense\.": "v.patch_embd.",
            r"^v\.patch_ln([12])\.": r"v.patch_norm.\1.",
            r"^v\.pos_norm\.": "v.patch_norm.3.",
            r"^v\.pos_embedding$": "v.position_embd.weight",
            r"^v\.(?:multimodal_embedder\.)?embedding_projection\.": "mm.input_projection.",
            r"^(?:model\.)?embed_audio\.embedding_projection\.": "mm.a.input_projection.",
        },
        {r"\.patch_dense\.weight$|\.patch_ln1\.": _by_colours, r"\.pos_embedding$": _by_axes},
        {r"\.pos_embedding$": F32},
    ),
}
FAMILIES_WITH_MMPROJ = tuple(_RULES)


def tower_tensors(
    model_type: str, shapes: Mapping[str, tuple[int, ...]], kind: GGMLQuantizationType = F16
) -> list[TowerTensor]:
    """Every tensor of an mmproj file, in the order of the checkpoint.

    Args:
        model_type: The checkpoint's, one of `FAMILIES_WITH_MMPROJ`.
        shapes: The shape of each tensor of the towers, by the checkpoint's name of it.
        kind: The type of the matrices; vectors and what llama.cpp needs in float32 are float32.

    Raises:
        UserError: llama.cpp has no name for a tensor.
    """
    rules, known = _RULES[model_type], get_tensor_name_map(MODEL_ARCH.MMPROJ, _blocks(shapes))
    found = []
    for own, shape in shapes.items():
        if _first(rules.unused, own, False):
            continue
        key = _replaced(rules.names, own)
        name = key if _UNMAPPED.fullmatch(key) else known.get_name(key, try_suffixes=_ENDS)
        if name is None:
            raise UserError(
                f"llama.cpp has no place for the tower's tensor {own}, so an mmproj file would lack it; leave the file "
                "out with export.mmproj=false."
            )
        stored = _first(rules.values, own, _as_it_is)
        found.append(TowerTensor(name, own, stored, _first(rules.kinds, own, F32 if len(shape) < 2 else kind)))
    return found


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _blocks(names: Iterable[str]) -> int:
    numbers = (re.search(r"\.layers\.(\d+)\.", name) for name in names)
    return 1 + max((int(found[1]) for found in numbers if found), default=0)


def _replaced(patterns: Mapping[str, str], name: str) -> str:
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name


def _first(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if re.search(pattern, name)), default)
