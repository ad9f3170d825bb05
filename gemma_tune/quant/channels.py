"""The plan of Gemma's phone format: one scale for each output channel, and other bits for some layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from gemma_tune.config import QuantConfig
from gemma_tune.errors import UserError
from gemma_tune.quant.grid import GRIDS, ChannelGrid
from gemma_tune.quant.plan import Plan, plan_of


def channel_plan(model: Any, quant: QuantConfig) -> Plan:
    """The plan of a language part whose linear layers are on channel grids.

    Args:
        model: The model without an adapter.
        quant: `grid`, `embedding`, and the patterns of layers with other bits.

    Raises:
        UserError: As `plan_of`; a pattern that no layer has; a width that doesn't fill bytes.
    """
    plan = plan_of(model, quant.grid, quant.embedding_grid, quant.per_layer_grid)
    grids, kept = dict(plan.grids), dict(plan.kept)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)]
    names = [name for name in layers if f"{name}.weight" in plan.sizes]
    for bits, patterns in quant.other_bits.items():
        grid = GRIDS[f"int{bits}_channel"]
        for name in _matched(names, f"int{bits}_modules", patterns):
            tensor = f"{name}.weight"
            grids[tensor] = grid
            kept.pop(tensor, None)
            width = model.get_submodule(name).weight.shape[-1]
            if width % grid.block:
                raise UserError(f"{tensor}: its width {width} is not a multiple of {grid.block}, which fill a byte.")
    other = [name for name, grid in grids.items() if not isinstance(grid, ChannelGrid)]
    if other:
        raise UserError(
            f"quant.grid={quant.grid} has one scale for each row, and {other[0]} is on the grid "
            f"{grids[other[0]].name}, in blocks; choose int8_channel, int4_channel or int2_channel for it."
        )
    return replace(plan, grids=grids, kept=kept)


def _matched(names: Sequence[str], key: str, patterns: Sequence[str]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        here = [name for name in names if re.search(pattern, name)]
        if not here:
            raise UserError(
                f"quant.{key}: no layer's name has {pattern!r}; names are like {names[len(names) // 2]} and {names[0]}."
            )
        found += here
    return found
