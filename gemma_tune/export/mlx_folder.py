"""`export=mlx`: int4 weights in groups of 32 for mlx-lm, Apple's engine, from our codes.

A weight is `scale · q + bias` there, with q from 0 to 15: q is our code plus 8, and the bias -8 times the scale. The
language part goes alone, since mlx-lm drops the towers of a checkpoint when it loads one.
https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gemma_tune.config import ExportConfig
from gemma_tune.errors import UserError
from gemma_tune.export.file_tensor import FileTensor
from gemma_tune.export.merged_from_grid import dense
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.tensors import TrainedTensors, by_rows
from gemma_tune.export.transformers_folder import published_sizes, write_weights
from gemma_tune.models.unwrap import language_part
from gemma_tune.quant.grid import Encoded
from gemma_tune.quant.plan import Plan
from gemma_tune.run.manifest import write_json

GROUP = 32
# mlx-lm's classes, by the `model_type` of the language part
_MODEL_TYPES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "gemma3n_text": "gemma3n",
    "gemma4_text": "gemma4_text",
    "gemma4_unified_text": "gemma4_text",
}
# What Gemma 4 12B's configuration doesn't have, and mlx-lm has other defaults for
_GEMMA4_ABSENT = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "attention_k_eq_v": True,
}
# It has no class of 3n's language part alone
_NESTED, _NESTED_PREFIX = ("gemma3n_text",), "model.language_model."
# Fused experts are three layers there
_FUSED, _DOWN = ".experts.gate_up_proj", ".experts.down_proj"
_SCALE_TYPES = (torch.bfloat16, torch.float16, torch.float32)


def export(given: ModelOnGrid, folder: Path, options: ExportConfig) -> list[Path]:
    """A `FolderWriter` of codes, scales and biases; every other tensor is dense, in bfloat16 where that is exact.

    Raises:
        UserError: An architecture that mlx-lm computes in another way.
    """
    trained, plan = given.trained, given.plan
    base = language_part(given.model)
    described = mlx_config(base.config, plan) | {"architectures": [type(base).__name__]}
    kind = base.config.model_type
    tensors: dict[str, FileTensor] = {}
    for name in trained:
        shape = by_rows(trained, name).shape
        for path, rows in stored_as_parts(name, shape, kind).items():
            if name in plan.grids:
                tensors |= _coded(name, path, rows, trained, plan)
            else:
                tensors[path] = _rows_of(dense(name, trained, plan), rows)
    idle = {path: torch.zeros(shape, dtype=torch.bfloat16) for path, shape in idle_tensors(base.config).items()}
    write_weights({**tensors, **idle}, base.config, given.tokenizer, folder, options)
    write_json(folder / "config.json", described)
    base.generation_config.save_pretrained(folder)
    return sorted(p for p in folder.iterdir() if p.is_file())


def bits_of(name: str, plan: Plan) -> int:
    """Bits that a code has in the file."""
    return 4 if plan.grids[name].bits <= 4 else 8


def stored_as_parts(name: str, shape: tuple[int, ...], kind: str) -> dict[str, slice]:
    """Under which names mlx-lm has a tensor of the language part, and which of its rows (the second last axis).

    Args:
        name: The tensor's name in the language part.
        shape: Its shape.
        kind: `model_type` of the language part.
    """
    if kind in _NESTED:
        name = _NESTED_PREFIX + name.removeprefix("model.")
    if name.endswith(_FUSED):
        layer, half = name.removesuffix("gate_up_proj") + "switch_glu.", shape[-2] // 2
        return {f"{layer}gate_proj.weight": slice(0, half), f"{layer}up_proj.weight": slice(half, None)}
    if name.endswith(_DOWN):
        name = name.removesuffix("down_proj") + "switch_glu.down_proj.weight"
    return {name: slice(None)}


def idle_tensors(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what mlx-lm wants of Gemma 3n's layers that use keys and values of others; it reads none."""
    if config.model_type not in _NESTED:
        return {}
    size, first = config.head_dim, config.num_hidden_layers - config.num_kv_shared_layers
    keys = (config.num_key_value_heads * size, config.hidden_size)
    shapes = {"k_proj": keys, "v_proj": keys, "k_norm": (size,)}
    return {
        f"{_NESTED_PREFIX}layers.{layer}.self_attn.{name}.weight": shape
        for layer in range(first, config.num_hidden_layers)
        for name, shape in shapes.items()
    }


def mlx_config(config: Any, plan: Plan) -> dict[str, Any]:
    """The config.json: all of the language part's, what mlx-lm reads by older names, and the quantization.

    mlx-lm has defaults of its own for whatever is missing, so nothing that equals a default of Transformers is left
    out.

    Args:
        config: The language part's configuration.
        plan: Which tensor is on which grid.

    Raises:
        UserError: mlx-lm computes this architecture in another way.
    """
    check_config(config)
    kind = config.model_type
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    found["model_type"] = _MODEL_TYPES[kind]
    rope = found.get("rope_parameters") or {}
    whole = rope.get("full_attention", rope)
    if kind.startswith("gemma4"):
        found |= _GEMMA4_ABSENT | found | published_sizes(config)
    elif "rope_theta" in whole:
        found["rope_theta"] = whole["rope_theta"]
        scaled = {key: value for key, value in whole.items() if key != "rope_theta"}
        found["rope_scaling"] = None if scaled.get("rope_type", "default") == "default" else scaled
    if "sliding_attention" in rope and not kind.startswith("gemma4"):
        found["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    if kind == "gemma3_text":
        found["sliding_window_pattern"] = _pattern(config)
    if kind in _NESTED:
        found = {"model_type": _MODEL_TYPES[kind], "text_config": found, "eos_token_id": found.get("eos_token_id")}
    sizes: dict[str, Any] = {"group_size": GROUP, "bits": 4, "mode": "affine"}
    for name in plan.grids:
        if (bits := bits_of(name, plan)) != 4:
            for path in stored_as_parts(name, (0, 0), kind):
                sizes[path.removesuffix(".weight")] = {"group_size": GROUP, "bits": bits, "mode": "affine"}
    return found | {"quantization": sizes}


def check_config(config: Any) -> None:
    """Raises UserError where mlx-lm computes the language part in another way than it was trained."""
    if config.model_type not in _MODEL_TYPES:
        raise UserError(f"export.formats: mlx-lm has no model for {config.model_type}; leave mlx out.")
    if config.model_type == "gemma3_text":
        _pattern(config)


def _pattern(config: Any) -> int:
    """Every how many layers attention is not sliding, which is all that mlx-lm knows of Gemma 3's layers."""
    whole = [n for n, kind in enumerate(config.layer_types) if kind == "full_attention"]
    pattern = whole[0] + 1 if whole else 0
    if not whole or whole != list(range(pattern - 1, len(config.layer_types), pattern)):
        raise UserError(
            "export.formats: mlx-lm computes Gemma 3 with full attention in every n-th layer, and here it is in the "
            f"layers {whole}; leave mlx out."
        )
    return pattern


def _rows_of(tensor: FileTensor, rows: slice) -> FileTensor:
    """Some rows (the second last axis) of a tensor."""
    if rows == slice(None):
        return tensor
    *before, count, width = tensor.shape
    shape = (*before, len(range(count)[rows]), width)
    return FileTensor(shape, tensor.dtype, lambda: (block[..., rows, :] for block in tensor.blocks()))


def _coded(name: str, path: str, rows: slice, trained: TrainedTensors, plan: Plan) -> dict[str, FileTensor]:
    """A layer's three tensors."""
    *before, width = by_rows(trained, name).shape
    bits = bits_of(name, plan)
    dtype = torch.bfloat16 if plan.grids[name].fits_bfloat16 else _scale_type(name, trained)
    lowest = -(2 ** (bits - 1))

    def blocks() -> Iterator[Encoded]:
        return iter(by_rows(trained, name).blocks)

    def tensor(columns: int, kind: torch.dtype, part: Any) -> FileTensor:
        return _rows_of(FileTensor((*before, columns), kind, lambda: map(part, blocks())), rows)

    stem, groups = path.removesuffix(".weight"), width // GROUP
    return {
        f"{stem}.weight": tensor(width * bits // 32, torch.uint32, partial(_packed, bits=bits)),
        f"{stem}.scales": tensor(groups, dtype, lambda block: block.scales.to(dtype)),
        f"{stem}.biases": tensor(groups, dtype, lambda block: (block.scales * lowest).to(dtype)),
    }


def _packed(block: Encoded, bits: int) -> torch.Tensor:
    """Codes from 0, several in an unsigned 32-bit number, the first one in its lowest bits."""
    several = 32 // bits
    codes = (block.codes.to(torch.int32) + 2 ** (bits - 1)).unflatten(-1, (-1, several))
    shifts = torch.arange(several, dtype=torch.int32) * bits
    return (codes << shifts).sum(-1, dtype=torch.int32).view(torch.uint32)


def _scale_type(name: str, trained: TrainedTensors) -> torch.dtype:
    """The narrowest type that holds every scale of a tensor exactly."""
    left = list(_SCALE_TYPES)
    for block in by_rows(trained, name).blocks:
        left = [dtype for dtype in left if torch.equal(block.scales.to(dtype).float(), block.scales)]
    return left[0]
