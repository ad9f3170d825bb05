"""Activations rounded to 8 bits by scales that never change: those of Gemma's phone format.

The input and the output of a linear layer are rounded in the forward pass of training as
`transformers.integrations.gemma_quant.apply_srq` rounds them in the served model. The scales are calibrated once, on
training rows, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from gemma_tune.chat import Rendered
from gemma_tune.config import QuantConfig
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.towers.media import media_inputs
from gemma_tune.models.towers.towers import seeing
from gemma_tune.models.unwrap import language_part
from gemma_tune.processes import from_main
from gemma_tune.progress import progress
from gemma_tune.quant.grid import ChannelGrid
from gemma_tune.quant.layers import grid_layers, put_on_grid
from gemma_tune.quant.on_grid import OnGrid
from gemma_tune.quant.plan import Plan

_LOWEST, _HIGHEST = -128, 127
# Shares of the largest magnitude that are tried as the one that becomes the highest code
_SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1)
_LONGEST = 512  # tokens of a row
_SCALE_BITS = 8  # significant ones: bfloat16 holds the scale exactly


class ActivationScales(NamedTuple):
    """The scales of a layer, as float32 and bfloat16 hold them; 0: not rounded.

    Attributes:
        input: Of what it is given.
        output: Of what it gives.
    """

    input: float
    output: float


class _Rounded(torch.autograd.Function):
    """round(x / scale), clipped to 8 bits, times the scale; the gradient is that of clipping."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        step = torch.tensor(scale, dtype=x.dtype, device=x.device)
        codes = torch.round(x / step)
        ctx.save_for_backward((codes >= _LOWEST) & (codes <= _HIGHEST))
        return torch.clamp(codes, _LOWEST, _HIGHEST) * step

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None


def round_activation(x: torch.Tensor, scale: float) -> torch.Tensor:
    """An activation as the served model rounds it, in its own type; straight through where it isn't clipped.

    Args:
        x: Any shape.
        scale: Of a code; 0: it stays as it is.
    """
    return x if scale == 0 else _Rounded.apply(x, scale)


def round_activations(
    model: nn.Module, plan: Plan, rows: Sequence[Rendered], count: int, tokenizer: Any = None
) -> None:
    """Calibrates the scales of every linear layer on a channel grid, and rounds its activations from now on.

    The head stays without: its product is the logits. Off the grid (`off_grid`) nothing is rounded.

    Args:
        model: The model on its grid, or a PeftModel around it.
        plan: The plan of its grids.
        rows: What it is trained on.
        count: Of how many rows the scales are calibrated; 0: activations are not rounded.
        tokenizer: Its tokenizer, whose processor prepares the media of rows that have some.
    """
    layers = _layers(model, plan)
    if count and layers:
        scales = from_main(lambda: _calibrated(language_part(model), layers, rows[:count], tokenizer))
        for name, layer in layers.items():
            _round(layer, scales[name])


def quantize(model: nn.Module, plan: Plan, quant: QuantConfig, rows: Sequence[Rendered], tokenizer: Any = None) -> None:
    """Puts a model on its grid, in place, and rounds its activations where the format does.

    Args:
        model: The model, or a PeftModel around it whose adapters are `GridLora`.
        plan: Which weight is on which grid.
        quant: `calibration_samples`.
        rows: What the activations' scales are calibrated on.
        tokenizer: As for `round_activations`.
    """
    put_on_grid(model, plan)
    if quant.by_channel:
        round_activations(model, plan, rows, quant.calibration_samples, tokenizer)


def activation_scales(model: nn.Module) -> dict[str, ActivationScales]:
    """The scales of the layers whose activations are rounded, by the names of their weights in the language part."""
    found = {name: getattr(layer, "activation_scales", None) for name, layer in grid_layers(model).items()}
    return {name: scales for name, scales in found.items() if scales is not None}


def _layers(model: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    layers: Mapping[str, Any] = grid_layers(model)
    return {
        name: layer
        for name, layer in layers.items()
        if isinstance(plan.grids[name], ChannelGrid)
        and isinstance(layer, nn.Module)  # experts are none
        and not isinstance(layer, nn.Embedding)
        and "lm_head" not in name
    }


def _round(layer: Any, scales: ActivationScales) -> None:
    layer.activation_scales = scales

    def before(module: OnGrid, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return given if module.off else (round_activation(given[0], scales.input), *given[1:])

    def after(module: OnGrid, _: Any, output: torch.Tensor) -> torch.Tensor:
        return output if module.off else round_activation(output, scales.output)

    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(after)


def _calibrated(
    base: Any, layers: Mapping[str, nn.Module], rows: Sequence[Rendered], tokenizer: Any
) -> dict[str, ActivationScales]:
    """The scales that give the smallest squared error over the rows, of those that clip more or less."""
    largest = {name: torch.zeros(2) for name in layers}
    errors = {name: torch.zeros(2, len(_SHARES), dtype=torch.float64) for name in layers}

    def magnitudes(name: str, side: int, x: torch.Tensor) -> None:
        largest[name][side] = max(largest[name][side], x.abs().max().float().cpu())

    def lost(name: str, side: int, x: torch.Tensor) -> None:
        most, x = float(largest[name][side]), x.float()
        for n, share in enumerate(_SHARES if most else ()):
            apart = round_activation(x, _scale(most * share)) - x
            errors[name][side, n] += apart.square().sum(dtype=torch.float64).cpu()

    for see in (magnitudes, lost):
        _seen(base, layers, rows, tokenizer, see)
    return {
        name: ActivationScales(
            *(_scale(float(largest[name][side]) * _SHARES[int(errors[name][side].argmin())]) for side in (0, 1))
        )
        for name in layers
    }


def _seen(
    base: Any,
    layers: Mapping[str, nn.Module],
    rows: Sequence[Rendered],
    tokenizer: Any,
    see: Callable[[str, int, torch.Tensor], None],
) -> None:
    """Shows the inputs (0) and outputs (1) of layers in forward passes of the rows."""
    hooks = []
    for name, layer in layers.items():

        def both(_: Any, given: tuple[Any, ...], output: torch.Tensor, own: str = name) -> None:
            see(own, 0, given[0].detach())
            see(own, 1, output.detach())

        hooks.append(layer.register_forward_hook(both))
    device = base.get_input_embeddings().weight.device
    try:
        with evaluating(base):
            for row in progress(rows, desc="calibrating activations", unit=" rows"):
                ids = row.input_ids if row.media else row.input_ids[:_LONGEST]  # a medium is never cut
                with seeing(base, media_inputs(tokenizer, [row])):
                    base.model(input_ids=torch.tensor([ids], device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def _scale(most: float) -> float:
    """The scale that gives a magnitude the highest code, rounded up to a number that bfloat16 holds."""
    if most == 0:
        return 0.0
    bits = torch.tensor(most / _HIGHEST).view(torch.int32)
    dropped = 24 - _SCALE_BITS
    return float((bits + (2**dropped - 1) & -(2**dropped)).view(torch.float32))
