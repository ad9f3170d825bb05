"""Layers whose forward uses weights on the grid, while the weights that are trained stay in float32.

A layer on the grid rounds one tensor, `float_weight()`, and the exporters encode that same tensor: what is trained is
what is written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional

from gemma_tune.errors import UserError
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.kernels.lora import Layers
from gemma_tune.models.unwrap import language_part, plain_name
from gemma_tune.quant.experts import GridExperts, put_experts_on_grid
from gemma_tune.quant.grid import Grid, straight_through
from gemma_tune.quant.on_grid import OnGrid
from gemma_tune.quant.plan import KEPT_16, Plan


class GridLinear(OnGrid, nn.Linear):
    """A linear layer on the grid; it shares its weight with the layer that it replaces."""

    def __init__(self, replaced: nn.Linear, grid: Grid) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = replaced.in_features, replaced.out_features
        self.weight, self.bias = replaced.weight, replaced.bias
        self.grid = grid

    def float_weight(self) -> torch.Tensor:
        """See `OnGrid`."""
        return self.weight.float()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The product with the rounded weight."""
        x = _in_compute_type(input)  # so that the weight is kept in that type, too
        return functional.linear(x, self.forward_weight(x), self.bias)


def _in_compute_type(x: torch.Tensor) -> torch.Tensor:
    """As autocast gives it to a product."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class GridEmbedding(OnGrid, nn.Embedding):
    """Gemma's embedding on the grid, with Gemma's scale."""

    def __init__(self, replaced: Any, grid: Grid) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = replaced.num_embeddings, replaced.embedding_dim
        self.padding_idx, self.weight = replaced.padding_idx, replaced.weight
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        self.grid = grid
        self.register_buffer("embed_scale", replaced.embed_scale.detach().clone(), persistent=False)

    def float_weight(self) -> torch.Tensor:
        """See `OnGrid`."""
        return self.weight.float()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Rows of the rounded matrix, times `embed_scale`."""
        rounded = self.forward_weight(self.weight)
        return functional.embedding(input, rounded, self.padding_idx) * self.embed_scale.to(rounded.dtype)


class GridLora(OnGrid, LoraLinear):
    """PEFT's LoRA layer with the adapter inside the quantizer: the forward pass uses round(W + s·B·A)."""

    def float_weight(self) -> torch.Tensor:
        """See `OnGrid`."""
        weight = self.get_base_layer().weight.float()
        with torch.autocast(weight.device.type, enabled=False):  # it would compute the sum in bfloat16
            for name in self.active_adapters:
                a, b = self.lora_A[name].weight.float(), self.lora_B[name].weight.float()
                weight = torch.addmm(weight, b, a, alpha=self.scaling[name])
        return weight

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The product with the rounded sum. Dropout is left out: the served model has none."""
        bias = self.get_base_layer().bias
        if self.off or not torch.is_grad_enabled():
            return functional.linear(x, self.forward_weight(x), bias)
        x = _in_compute_type(x)
        weight = self.kept_weight(x.dtype)
        if not self.in_step:
            self._kept = None
        scales = [self.scaling[name] for name in self.active_adapters]
        factors = [f[name].weight for name in self.active_adapters for f in (self.lora_A, self.lora_B)]
        product: torch.Tensor = _AdapterInside.apply(x, weight, scales, *factors)
        return product if bias is None else product + bias


# What `attach` puts in the place of PEFT's layers
GRID_LAYERS: Layers = {nn.Linear: GridLora}


class _AdapterInside(torch.autograd.Function):
    """x · weightᵀ, where weight = round(W + s·B·A), with the gradients of x · (W + s·B·A)ᵀ for A and B.

    They are computed from the factors, as without a grid; autograd would first compute the gradient of the whole
    sum, [out, in].
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, scales: Sequence[float], *factors: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, *factors)
        ctx.scales = scales
        return functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        rows, given = x.flatten(0, -2), gradient.flatten(0, -2)
        found: list[torch.Tensor | None] = []
        for scale, a, b in zip(ctx.scales, factors[::2], factors[1::2], strict=True):
            a, b = a.to(x.dtype), b.to(x.dtype)
            found += [scale * (given @ b).T @ rows, scale * given.T @ (rows @ a.T)]
        return gradient @ weight if ctx.needs_input_grad[0] else None, None, None, *found


def _on_grid(model: nn.Module) -> Iterator[tuple[str, OnGrid]]:
    """Every tensor on the grid by its name in the language part, a tied head, too."""
    for path, module in language_part(model).named_modules():
        if isinstance(module, OnGrid):
            yield f"{path}.weight", module
        elif isinstance(module, GridExperts):
            yield from ((f"{plain_name(path)}.{own}", tensor) for own, tensor in module.tensors.items())


def grid_layers(model: nn.Module) -> dict[str, OnGrid]:
    """The tensors on the grid by their names in the language part; a tied head is left out."""
    found: dict[str, OnGrid] = {}
    seen: set[int] = set()
    for name, layer in _on_grid(model):
        own = id(layer.weight) if isinstance(layer, nn.Linear | nn.Embedding) else id(layer)
        if own not in seen:
            seen.add(own)
            found[name] = layer
    return found


def put_on_grid(model: Any, plan: Plan) -> None:
    """Puts the layers of the plan on the grid, in place; a PeftModel's adapters must be `GridLora`.

    Weights that the files hold in 16 bit are rounded to bfloat16 now and not trained: training in float32 would make
    them differ from those that are served.

    Args:
        model: The model, or a PeftModel around it.
        plan: Which weight is on which grid.

    Raises:
        UserError: An adapter on a layer that the plan keeps.
    """
    base = language_part(model)
    for name, module in base.named_modules():
        if isinstance(module, GridLora) and f"{name}.weight" not in plan.grids:
            what = plan.kept.get(f"{name}.weight", "not on a grid")
            raise UserError(
                f"adapter.target_modules reaches {name}, which the int4 files hold as it is ({what}): it isn't trained "
                "in QAT; leave it out."
            )
    for name, kept in plan.kept.items():
        if kept == KEPT_16:
            parameter = base.get_parameter(name)
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)
            parameter.requires_grad_(False)
    experts: dict[str, dict[str, Grid]] = {}
    for name, grid in plan.grids.items():
        path, own = name.rsplit(".", 1)
        if own != "weight":
            experts.setdefault(path, {})[own] = grid
            continue
        module = base.get_submodule(path)
        if isinstance(module, GridLora):
            module.grid = grid
        elif isinstance(module, nn.Embedding):
            base.set_submodule(path, GridEmbedding(module, grid))
            if name == FAMILIES[base.config.model_type].tied[0] and base.config.tie_word_embeddings:
                base.set_submodule("lm_head", GridLinear(base.lm_head, grid))
        else:
            base.set_submodule(path, GridLinear(module, grid))
    for path, grids in experts.items():
        put_experts_on_grid(base, path, grids)


@contextlib.contextmanager
def off_grid(model: nn.Module) -> Iterator[None]:
    """Within it, layers on the grid use their float32 weights, not rounded."""
    layers = [layer for _, layer in _on_grid(model)]
    for layer in layers:
        layer.off = True
    try:
        yield
    finally:
        for layer in layers:
            layer.off = False


@contextlib.contextmanager
def rounding_anew(model: nn.Module) -> Iterator[None]:
    """Within it, layers on the grid round their weights in each forward pass, and keep no rounded copy."""
    forget_rounded(model)
    layers = [layer for _, layer in _on_grid(model)]
    for layer in layers:
        layer.keeps = False
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps = True


def forget_rounded(model: nn.Module) -> None:
    """Frees the rounded weights that layers on the grid keep after a forward pass."""
    for _, layer in _on_grid(model):
        layer._kept = None


@contextlib.contextmanager
def rounded_once(model: nn.Module, in_step: bool = False) -> Iterator[None]:
    """Within it, a tied embedding, the largest matrix of a small Gemma, is rounded once for both lookup and head.

    Args:
        model: The language part.
        in_step: Whether all layers keep their rounded weights until `forget_rounded`, for other micro-batches of an
            optimizer step; embeddings that aren't tied don't, since they are large, and nothing else keeps them.
    """
    every = [layer for _, layer in _on_grid(model)] if in_step else []
    heads = {id(m.weight) for m in model.modules() if isinstance(m, GridLinear)}
    layers = [m for m in model.modules() if isinstance(m, GridEmbedding) and id(m.weight) in heads]
    pairs = [m for m in model.modules() if isinstance(m, GridLinear) and any(m.weight is e.weight for e in layers)]
    for one in every:
        one.in_step = one in layers or not isinstance(one, GridEmbedding)
    for layer in layers:
        if not layer.off:
            weight = layer.float_weight()
            kept = layer.kept_weight(weight.dtype) if in_step else layer.grid.rounded(weight)
            layer.shared = straight_through(weight, kept)
            for head in pairs:
                head.shared = layer.shared
    try:
        yield
    finally:
        for one in [*layers, *pairs]:
            one.shared = None
        for one in every:
            one.in_step = False
