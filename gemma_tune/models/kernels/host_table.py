"""The table of per-layer embeddings (Gemma 3n, Gemma 4 E2B and E4B) in the host's memory, beside a model on a GPU.

It is half of such a model's weights (4.7 GB of E2B's in bfloat16), and a forward pass reads one row of it for each
token. So it is looked up on the host, and the rows of the batch are copied to the GPU.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from gemma_tune.config import Config
from gemma_tune.config.adapter import ALL_LINEAR
from gemma_tune.models.family import PER_LAYER_TABLE
from gemma_tune.models.unwrap import language_part
from gemma_tune.processes import several

_TABLE = PER_LAYER_TABLE.removesuffix(".weight")
_loading: ContextVar[bool] = ContextVar("loading", default=False)


def stays_on_host(cfg: Config) -> bool:
    """Whether a training on a GPU has the table, where its model has one, in the host's memory from the beginning.

    In QAT the table may be on a grid, and is on the GPU until it is known that it isn't.
    """
    adapter, asked = cfg.adapter, cfg.model.per_layer_table_on_host
    names = adapter.target_modules  # a regular expression may give the table an adapter
    adapted = isinstance(names, str) and names != ALL_LINEAR and re.fullmatch(names, _TABLE) is not None
    trained = adapter.peft_type == "none" or cfg.traits.quantizes or adapted
    return asked is not False and not trained and cfg.processes == 1


@contextlib.contextmanager
def loading_for(cfg: Config) -> Iterator[None]:
    """Within it, the table of a model that is loaded onto a GPU never gets there, where `stays_on_host` says so."""
    token = _loading.set(stays_on_host(cfg))
    try:
        yield
    finally:
        _loading.reset(token)


def loads_to_host() -> bool:
    """Whether what is loaded now keeps its table off the GPU."""
    return _loading.get()


class _Loader(PreTrainedModel):  # type: ignore[misc]
    """Loads a model onto one device, and its table to the host.

    A `device_map` of two devices would have accelerate copy the table to the GPU in each forward pass.
    """

    @classmethod
    def _load_pretrained_model(cls, model: Any, state_dict: Any, files: Any, load_config: Any) -> Any:
        return super()._load_pretrained_model(model, state_dict, files, _with_host(load_config))

    @classmethod
    def _finalize_model_loading(cls, model: Any, load_config: Any, info: Any) -> Any:
        return super()._finalize_model_loading(model, _with_host(load_config), info)


def _with_host(load_config: Any) -> Any:
    return replace(load_config, device_map=load_config.device_map | {_TABLE: "cpu"})


def loader(kind: Any) -> Any:
    """A class whose `from_pretrained` loads a model of Transformers' class `kind` so; see `placed`."""
    return type(kind.__name__, (kind, _Loader), {"__module__": kind.__module__})


def placed(loaded: Any) -> Any:
    """A model that was loaded, of Transformers' own class again, with the table looked up where it is."""
    if isinstance(loaded, _Loader):
        loaded.__class__ = type(loaded).__base__  # type: ignore[assignment]
        if table := _table_of(loaded):
            loaded.set_submodule(_TABLE, HostTable(table, torch.device("cpu")))
    return loaded


def _table_of(base: Any) -> Any:
    return getattr(base.base_model, _TABLE.rpartition(".")[2], None)


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
    base = language_part(model)
    table = _table_of(base)
    on_gpu = base.get_input_embeddings().weight.device.type != "cpu"
    wanted = on_gpu and not several() if asked is None else asked
    # PEFT's copy of a table that is trained, one on a grid, and one that is there already are other classes
    plain = type(table).__module__.startswith("transformers.")
    if wanted and plain and not table.weight.requires_grad:
        base.set_submodule(_TABLE, HostTable(table, torch.device("cpu")))
