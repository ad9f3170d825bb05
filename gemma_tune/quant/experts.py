"""Fused experts on the grid: two tensors of all experts, [E, out, in], blocked along `in` as linear layers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from gemma_tune.models.adapters.merging import with_expert_adapter
from gemma_tune.quant.grid import Grid
from gemma_tune.quant.on_grid import OnGrid


class ExpertTensor(OnGrid):
    """One tensor of fused experts on the grid, with its adapter inside the quantizer.

    Args:
        experts: The module that has the tensor.
        name: The tensor's name in it.
        grid: Its grid.
        adapter: PEFT's wrapper with the adapter of this tensor, or None.
    """

    def __init__(self, experts: GridExperts, name: str, grid: Grid, adapter: ParamWrapper | None) -> None:
        self._experts, self._name, self.grid, self.adapter = experts, name, grid, adapter

    def _weight(self) -> torch.Tensor:
        """The tensor without its adapter, which PEFT puts around it during a forward pass."""
        if parametrize.is_parametrized(self._experts, self._name):
            found: torch.Tensor = self._experts.parametrizations[self._name].original
            return found
        return getattr(self._experts, self._name)  # type: ignore[no-any-return]

    def float_weight(self) -> torch.Tensor:
        """See `OnGrid`."""
        weight = self._weight().float()
        if self.adapter is None:
            return weight
        with torch.autocast(weight.device.type, enabled=False):  # it would compute the sum in bfloat16
            for name in self.adapter.active_adapters:
                weight = with_expert_adapter(weight, self.adapter, name)
        return weight

    def sources(self) -> Iterator[torch.Tensor]:
        """See `OnGrid`."""
        yield self._weight()
        if self.adapter is not None:
            yield from (p for own in (self.adapter.lora_A, self.adapter.lora_B) for p in own.parameters())


class GridExperts(nn.Module):
    """Fused experts on the grid; they share their tensors with the module that they replace, and its computation."""

    def __init__(self, replaced: nn.Module, grids: Mapping[str, Grid], adapters: Mapping[str, ParamWrapper]) -> None:
        super().__init__()
        for name, parameter in replaced.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self._children = [name for name, _ in replaced.named_children()]
        for name in self._children:
            self.add_module(name, getattr(replaced, name))
        self._replaced = (replaced,)  # in a tuple, so that its tensors have one name in the model
        self.tensors = {own: ExpertTensor(self, own, grid, adapters.get(own)) for own, grid in grids.items()}

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the replaced module computes, with the rounded tensors."""
        for name in self._children:  # where one was replaced here, as the check of exports does
            self._replaced[0].add_module(name, getattr(self, name))
        rounded = {own: tensor.forward_weight(hidden_states) for own, tensor in self.tensors.items()}
        found: torch.Tensor = functional_call(self._replaced[0], rounded, (hidden_states, *args), kwargs)
        return found


def put_experts_on_grid(base: nn.Module, path: str, grids: Mapping[str, Grid]) -> None:
    """Replaces fused experts by `GridExperts`, inside of the wrappers that PEFT puts around each adapted tensor.

    Args:
        base: The language part.
        path: Where the experts are in it.
        grids: The grid of each of their tensors, by its name.
    """
    adapters: dict[str, ParamWrapper] = {}
    module = base.get_submodule(path)
    while isinstance(module, ParamWrapper):
        adapters[module.parameter_name] = module
        path, module = f"{path}.base_layer", module.base_layer
    base.set_submodule(path, GridExperts(module, grids, adapters))
