"""A tensor whose forward pass uses weights on the grid, while the weight that is trained stays in float32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from gemma_tune.quant.grid import Grid


class OnGrid:
    """A tensor on the grid: a layer with one weight, or one of the tensors of fused experts.

    Attributes:
        grid: Its grid.
        off: Whether the float32 weight is used as it is: the unquantized model, for comparison.
        shared: The rounded weight of this step, where embedding and head share it; else None.
        keeps: Whether the rounded weight is kept for the next forward pass without gradients.
    """

    grid: Grid
    off: bool = False
    keeps: bool = True
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
        if self.shared is not None:
            self._kept = None  # some optimizers change weights without counting it as a version
            return self.shared.to(like.dtype)
        if torch.is_grad_enabled():
            self._kept = None
            return self.grid.fake_quantize(self.float_weight()).to(like.dtype)
        if not self.keeps:
            return self.grid.rounded(self.float_weight()).to(like.dtype)
        version = (like.dtype, *((p.data_ptr(), p._version) for p in self.sources()))
        if self._kept is None or self._kept[0] != version:
            self._kept = version, self.grid.rounded(self.float_weight()).to(like.dtype)
        return self._kept[1]
