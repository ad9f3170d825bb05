"""The table of per-layer embeddings (Gemma 3n, Gemma 4 E2B and E4B) in the host's memory, beside a model on a GPU.

It is half of such a model's weights (4.7 GB of E2B's in bfloat16), and a forward pass reads one row of it for each
token. So it is looked up on the host, and the rows of the batch are copied to the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gemma_tune.models.family import PER_LAYER_TABLE
from gemma_tune.models.unwrap import language_part
from gemma_tune.processes import several


class HostTable(nn.Embedding):  # type: ignore[misc]
    """Transformers' scaled embedding, which stays where it is when its model is moved; it shares the weight.

    Args:
        table: The embedding in whose place it stands.
        host: Where the weight is kept and looked up.
        to: Where the rows go; None: where the ids are.
    """

    def __init__(self, table: Any, host: torch.device, to: torch.device | None = None) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx, self.weight = table.padding_idx, table.weight
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        self.weight.data = self.weight.data.to(host)
        self.register_buffer("embed_scale", table.embed_scale.detach().to(host), persistent=False)
        self._to = to
        self.train(table.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Rows of the table, times `embed_scale`."""
        rows = functional.embedding(input.to(self.weight.device), self.weight, self.padding_idx)
        return (rows * self.embed_scale.to(rows.dtype)).to(input.device if self._to is None else self._to)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> HostTable:
        """Follows a change of type, and no change of device (`model.to`, accelerate), but that to no memory at all."""
        probe = fn(self.weight.data.new_empty(0))
        if probe.is_meta:
            return super()._apply(fn, recurse)  # type: ignore[no-any-return]
        self.weight.data = self.weight.data.to(probe.dtype)
        return self


def keep_table_on_host(model: Any, asked: bool | None) -> None:
    """Moves the table of a model to the host, in place; nothing where it has none, trains it, or has it on a grid.

    Args:
        model: The model, or a PeftModel around it.
        asked: `model.per_layer_table_on_host`; None: where the model is on a GPU that no other process trains with.
    """
    base, path = language_part(model), PER_LAYER_TABLE.removesuffix(".weight")
    table = getattr(base.base_model, path.rpartition(".")[2], None)
    on_gpu = base.get_input_embeddings().weight.device.type != "cpu"
    wanted = on_gpu and not several() if asked is None else asked
    # PEFT's copy of a table that is trained, and one on a grid, are other classes
    plain = type(table).__module__.startswith("transformers.")
    if wanted and plain and not table.weight.requires_grad:  # type: ignore[union-attr]
        base.set_submodule(path, HostTable(table, torch.device("cpu")))
