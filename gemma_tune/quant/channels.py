"""The plan of Gemma's phone format: one scale for each output channel, and other bits for some layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from gemma_tune.config import QuantConfig
from gemma_tune.errors import UserError
from gemma_tune.models.family import EMBEDDING, FAMILIES, PER_LAYER_EMBEDDING
from gemma_tune.quant.grid import GRIDS, ChannelGrid, Grid
from gemma_tune.quant.plan import KEPT_16, Plan, plan_of

# Bytes of the scale of a row, and of the two of a layer's activations
_ROW_SCALE, _ACTIVATIONS = 4, 8


def channel_plan(model: Any, quant: QuantConfig) -> Plan:
    """The plan of a language part whose linear layers are on channel grids; experts stay in 16 bit.

    The format has no codes for them, so that rounding them would save no byte.

    Args:
        model: The model without an adapter.
        quant: `grid`, `embedding`, and the patterns of layers with other bits.

    Raises:
        UserError: As `plan_of`; a pattern that no layer has; a layer whose bits are set twice; a width that doesn't
            fill bytes.
    """
    plan = plan_of(model, quant.grid, quant.embedding_grid, quant.per_layer_grid)
    family = FAMILIES[model.config.model_type]
    grids = {name: grid for name, grid in plan.grids.items() if not family.is_expert(name)}
    kept = {**plan.kept, **{name: KEPT_16 for name in plan.grids if name not in grids}}
    for tensor, grid in _by_patterns(model, quant, plan).items():
        grids[tensor] = grid
        kept.pop(tensor, None)
    other = [name for name, grid in grids.items() if not isinstance(grid, ChannelGrid)]
    if other:
        raise UserError(
            f"quant.grid={quant.grid} has one scale for each row, and {other[0]} is on the grid "
            f"{grids[other[0]].name}, in blocks; choose int8_channel, int4_channel or int2_channel for it."
        )
    return replace(plan, grids=grids, kept=kept, beside=_beside(model, grids))


def _beside(model: Any, grids: Mapping[str, Grid]) -> int:
    """Bytes of scales, and of the codes and scales of a tied head, which the format has twice."""
    tied = FAMILIES[model.config.model_type].tied[0] if model.config.tie_word_embeddings else None
    total = 0
    for name, grid in grids.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        scales = len(module.weight) * _ROW_SCALE
        total += scales + (0 if isinstance(module, nn.Embedding) else _ACTIVATIONS)
        if name == tied:
            total += module.weight.numel() * grid.bits // 8 + scales + _ACTIVATIONS
    return total


def _by_patterns(model: Any, quant: QuantConfig, plan: Plan) -> dict[str, Grid]:
    """The grids of the layers that a pattern names."""
    family = FAMILIES[model.config.model_type]
    keys = {EMBEDDING: "quant.embedding", PER_LAYER_EMBEDDING: "quant.per_layer_embedding"}
    of_kinds = {name: keys.get(str(family.kind_of(name, 2))) for name in plan.grids}
    set_by = {name: key for name, key in of_kinds.items() if key}
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)]
    names = [name for name in layers if f"{name}.weight" in plan.sizes]
    found: dict[str, Grid] = {}
    for bits, patterns in quant.other_bits.items():
        grid, key = GRIDS[f"int{bits}_channel"], f"quant.int{bits}_modules"
        for name in dict.fromkeys(_matched(names, key, patterns)):
            tensor, width = f"{name}.weight", model.get_submodule(name).weight.shape[-1]
            if other := set_by.get(tensor):
                fix = "let a pattern leave it out" if tensor in found else f"leave one out, or set {other}={grid.name}"
                raise UserError(f"{key} names {name}, whose bits are set by {other}, too; {fix}.")
            if width % grid.block:
                raise UserError(f"{tensor}: its width {width} is not a multiple of {grid.block}, which fill a byte.")
            found[tensor] = grid
        set_by |= dict.fromkeys(found, key)
    return found


def _matched(names: Sequence[str], key: str, patterns: Sequence[str]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        here = [name for name in names if re.search(pattern, name)]
        if not here:
            raise UserError(
                f"{key}: no layer's name has {pattern!r}; names are like {names[len(names) // 2]} and {names[0]}."
            )
        found += here
    return found
