"""The tensors of a trained model: codes and scales where they are on a grid, float32 numbers elsewhere.

Every exporter writes these, and the check compares the files with these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gemma_tune.errors import RunError
from gemma_tune.export.merged import merged_tensors
from gemma_tune.models.unwrap import language_part
from gemma_tune.quant.grid import Encoded, Grid, NotOnGrid
from gemma_tune.quant.layers import OnGrid, grid_layers
from gemma_tune.quant.plan import KEPT_16, Plan

# By their names in the language part; a tied head and embedding are one tensor, the embedding.
TrainedTensors = Mapping[str, Encoded | torch.Tensor]


def trained_tensors(model: Any, plan: Plan) -> dict[str, Encoded | torch.Tensor]:
    """Every tensor of a language part, on the CPU.

    For a layer on the grid, the tensor that its forward pass rounds is encoded, on the same device. A model without
    such layers is quantised as it is, with its adapter merged in float32 (post-training quantisation).

    Args:
        model: The trained model, or a PeftModel around it; it is not changed.
        plan: The format of each tensor.

    Raises:
        RunError: A tensor that no block can hold (NaN, too large), or that the plan doesn't list or lists with another
            size or grid.
    """
    found: dict[str, Encoded | torch.Tensor] = {}
    with torch.no_grad():
        for name, weight, layer in weights_of(model):
            _check_planned(name, weight, layer, plan)
            found[name] = _encoded(name, weight, plan.grids[name]) if name in plan.grids else weight.float().cpu()
    if missing := plan.sizes.keys() - found.keys():
        raise RunError(f"{min(missing)}: the plan is another model's: the model has no such tensor.")
    return found


def float_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Every tensor of the unquantised model, as it is before rounding: float32, on the CPU."""
    with torch.no_grad():
        return {name: weight.float().cpu() for name, weight, _ in weights_of(model)}


def _check_planned(name: str, weight: torch.Tensor, layer: OnGrid | None, plan: Plan) -> None:
    if plan.sizes.get(name) != weight.numel():
        raise RunError(f"{name}: the plan is another model's: it has no such tensor of {weight.numel():,} weights.")
    if layer is not None and layer.grid != plan.grids.get(name):
        planned = plan.grids[name].name if name in plan.grids else plan.kept[name]
        raise RunError(f"{name}: it was trained on the grid {layer.grid.name}, and the plan says {planned}.")


def _encoded(name: str, weight: torch.Tensor, grid: Grid) -> Encoded:
    try:
        codes, scales = grid.encode(weight)
    except NotOnGrid as error:
        raise RunError(f"{name}: {error}.") from error
    return Encoded(codes.cpu(), scales.cpu())


def decoded_weight(name: str, trained: TrainedTensors, plan: Plan) -> torch.Tensor:
    """The float32 numbers of a tensor in the files: decoded from the grid, rounded to bfloat16, or unchanged."""
    tensor = trained[name]
    if isinstance(tensor, Encoded):
        return plan.grids[name].decode(tensor)
    return tensor.bfloat16().float() if plan.kept[name] == KEPT_16 else tensor


class DecodedWeights(Mapping[str, torch.Tensor]):
    """`decoded_weight` of every tensor, computed on access: the contents of a float32 file.

    Args:
        trained: Every tensor.
        plan: Its plan.
    """

    def __init__(self, trained: TrainedTensors, plan: Plan) -> None:
        self._trained, self._plan = trained, plan

    def __getitem__(self, name: str) -> torch.Tensor:
        return decoded_weight(name, self._trained, self._plan)

    def __iter__(self) -> Iterator[str]:
        return iter(self._trained)

    def __len__(self) -> int:
        return len(self._trained)


def weights_of(model: Any) -> Iterator[tuple[str, torch.Tensor, OnGrid | None]]:
    """Every tensor before rounding, by its name in the language part, with its layer where that is on a grid."""
    layers = grid_layers(model)
    if not layers:
        for name, weight in merged_tensors(model, torch.float32):
            yield name, weight, None
        return
    base = language_part(model)
    inside = "\0"  # the prefix of the layer on the grid that the walk is in
    for name, module in base.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, OnGrid):  # a tied head is one, too, and is not among `layers`
            inside = f"{name}."
            if layer := layers.get(f"{name}.weight"):
                yield f"{name}.weight", layer.float_weight(), layer
        elif not (base.config.tie_word_embeddings and name == "lm_head"):
            for own, parameter in module.named_parameters(recurse=False):
                yield f"{name}.{own}", parameter, None
