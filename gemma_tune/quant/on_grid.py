"""A tensor whose forward pass uses weights on the grid, while the weight that is trained stays in float32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from gemma_tune.quant.grid import Grid, straight_through


class OnGrid:
    """A tensor on the grid: a layer with one weight, or one of the tensors of fused experts.

    Attributes:
        grid: Its grid.
        off: Whether the float32 weight is used as it is: the unquantized model, for comparison.
        shared: The rounded weight of this step, where embedding and head share it; else None.
        keeps: Whether the rounded weight is kept for the next forward pass without gradients.
        in_step: Whether it is kept with gradients, too, for the other micro-batches of an optimizer step.
    """

    grid: Grid
    off: bool = False
    keeps: bool = True
    in_step: bool = False
    shared: torch.Tensor | None = None
    _kept: tuple[Any, torch.Tensor] | None = None

    def float_weight(self) -> torch.Tensor:
        """The float32 weight that is rounded, [..., in]."""
        raise NotImplementedError

    def sources(self) -> Iterable[torch.Tensor]:
        """The tensors that it is computed from."""
        return self.parameters()  # type: ignore[attr-defined,no-any-return]

    def forward_weight(self, like: torch.Tensor) -> torch.Tensor:
        """The weight that the forward pass uses, in the dtype of `like`. Without gradients it is rounded once."""
        if self.off:
            return self.float_weight().to(like.dtype)
        if torch.is_grad_enabled() and not self.in_step:
            self._kept = None  # some optimizers change weights without counting it as a version
        if self.shared is not None:
            return self.shared.to(like.dtype)
        if torch.is_grad_enabled():
            weight = self.float_weight()
            if self.in_step:
                return straight_through(weight, self.kept_weight(like.dtype))
            return self.grid.fake_quantize(weight).to(like.dtype)
        if not self.keeps:
            return self.grid.rounded(self.float_weight()).to(like.dtype)
        return self.kept_weight(like.dtype)

    def kept_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The rounded weight without a gradient; it is rounded where the weight has changed since, and kept."""
        version = (dtype, *((p.data_ptr(), p._version) for p in self.sources()))
        if self._kept is None or self._kept[0] != version:
            with torch.no_grad():
                self._kept = version, self.grid.rounded(self.float_weight()).to(dtype)
        return self._kept[1]
