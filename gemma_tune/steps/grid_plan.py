"""The plan of a run in a quantization format, with the codes of a GGUF file where one is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gemma_tune.config import QuantConfig
from gemma_tune.errors import UserError
from gemma_tune.export.read_gguf import read_gguf
from gemma_tune.export.verify import ArtifactDiffers
from gemma_tune.models.family import PER_LAYER_TABLE
from gemma_tune.models.source import Source
from gemma_tune.quant.plan import Plan
from gemma_tune.quant.stored import plan_for
from gemma_tune.run.paths import resolve


def grid_plan(model: Any, quant: QuantConfig, source: Source) -> Plan:
    """The plan of a language part, see `plan_for`; the weights of `quant.checkpoint_file` take the place of its own.

    Args:
        model: The model without an adapter, as it was loaded.
        quant: Which grids.
        source: What it was loaded from.

    Raises:
        UserError: As `plan_for`, or the file can't be read, or is another model's.
    """
    file = quant.checkpoint_file
    if file is None:
        return _with_remark(plan_for(model, quant, source), quant)
    stored = read_gguf(resolve(file), model.config.get_text_config(), ours=False)
    try:
        return _with_remark(plan_for(model, quant, source, stored), quant)
    except ArtifactDiffers as error:
        raise UserError(f"quant.checkpoint_file: {error}") from error


def _with_remark(plan: Plan, quant: QuantConfig) -> Plan:
    if not quant.per_layer_grid or PER_LAYER_TABLE in plan.sizes:
        return plan
    said = f"quant.per_layer_embedding={quant.per_layer_embedding} has no effect: this model has no such table"
    return replace(plan, remarks=(*plan.remarks, said))
