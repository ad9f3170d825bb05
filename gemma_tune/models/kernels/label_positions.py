"""Layers whose output is read at labels alone, computed there: those that share keys and values, and the last one.

Layers that share (Gemma 4 E2B and E4B, Gemma 3n): their keys and values come from layers below, so what they give at a
position whose next token isn't trained is read by nobody: no later layer, and no head. Hooks of these layers narrow,
once, the hidden states, and for each of them the per-layer inputs, the rotary embeddings and the queries of the mask to
the positions that are read; keys stay all of them. Loss and gradients are those of all positions, up to the order of
sums. Transformers does the same for the last positions of a row where it generates (`logits_to_keep`), in Gemma 4.

The last layer of all other models: its keys and values are read at all positions, what follows attention at labels
alone. On a GPU that is off, since counting labels waits for it.

Suffixes of shapes: B rows, S tokens of a row, Q positions that are computed, of each row as many.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from gemma_tune.models.family import BY_DOCUMENT
from gemma_tune.models.kernels.documents import Documents

_OFF = "all_positions"  # name of an attribute of a language part
_KERNELS = ("sdpa", "eager", BY_DOCUMENT)  # those that take single rows of a mask


class Positions(NamedTuple):
    """The positions that are computed.

    Attributes:
        index: Ascending in each row, [B, Q].
        read: Which of them are read, bool [B, Q]; others fill rows that have fewer.
    """

    index: torch.Tensor
    read: torch.Tensor


def compute_all_positions(language: Any) -> None:
    """Turns `at_labels` off for a language part (`model.layers_at_labels=false`)."""
    vars(language)[_OFF] = True


# A CPU prepares its products once for each number of rows and keeps a thousand: a number of its own in each step
# costs all of them again and again (the embedded model's steps take a tenth longer). Of few rows there are few numbers
_MULTIPLE, _LONG = 16, 64


def positions_of(read_BS: torch.Tensor) -> Positions:
    """The positions that are read, and others: in rows with fewer than another, and up to a multiple in long ones."""
    width = int(read_BS.sum(1).max())
    if width >= _LONG:
        width = min(width + -width % _MULTIPLE, read_BS.shape[1])
    first = read_BS.byte().argsort(dim=1, descending=True, stable=True)[:, :width]
    index = first.sort(1).values
    return Positions(index, read_BS.gather(1, index))


@contextlib.contextmanager
def at_labels(language: Any, read_BS: torch.Tensor) -> Iterator[Positions | None]:
    """Within it, layers that share keys and values, else the last layer on a CPU, compute the positions that are read,
    and the model's output has those alone, [B, Q, H]; yields them, or None where all are computed.

    Nothing is narrowed where it is turned off, and where (nearly) all positions are read anyway. Layers that share
    aren't where a kernel takes no rows of a mask (flash, flex), or where a Transformers before 5.23 or a wrapper
    (`parallel.activation_checkpointing`) computes layers a second time in the backward pass: there hooks are part of
    what is repeated, and they are gone by then. The last layer isn't where any does so, since it has hooks inside.

    Args:
        language: The language part.
        read_BS: Which positions of the last layer are read, bool.
    """
    narrowing = None if vars(language).get(_OFF, False) else _narrowing(language)
    most = int(read_BS.sum(1).max()) if narrowing else 0  # which waits for a GPU
    if narrowing is None or not 0 < most < 0.95 * read_BS.shape[1]:
        yield None
        return
    positions = positions_of(read_BS)
    hooks = narrowing(positions.index)
    try:
        yield positions
    finally:
        for hook in hooks:
            hook.remove()


def _narrowing(language: Any) -> Callable[[torch.Tensor], list[Any]] | None:
    """What narrows a language part's layers to positions and gives its hooks; None where none can be."""
    text = language.base_model
    layers: list[Any] = list(getattr(text, "layers", ()))
    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in layers):  # wrapped (FSDP2's checkpointing)
        return None
    shared = [layer for layer in layers if getattr(layer.self_attn, "is_kv_shared_layer", False)]
    if shared:
        repeats = "__call__" in vars(GradientCheckpointingLayer) and text.is_gradient_checkpointing and text.training
        takes_rows = language.config._attn_implementation in _KERNELS
        return partial(_narrow_shared, shared) if takes_rows and not repeats else None
    on_cpu = language.get_input_embeddings().weight.device.type == "cpu"
    if not layers or not on_cpu or hasattr(layers[-1], "altup"):  # Gemma 3n joins streams after its last layer
        return None
    recomputes = layers[-1].gradient_checkpointing and layers[-1].training
    return None if recomputes else partial(_narrow_last, layers[-1])


def _narrow_shared(layers: list[Any], index_BQ: torch.Tensor) -> list[Any]:
    narrow = _Narrow(layers[0], index_BQ)
    return [layer.register_forward_pre_hook(narrow, with_kwargs=True) for layer in layers]


def _narrow_last(layer: Any, index_BQ: torch.Tensor) -> list[Any]:
    """The layer has the positions alone, but for its attention, up to where that is projected."""
    whole: list[torch.Tensor] = []

    def enter(_: Any, args: Any, kwargs: Any) -> Any:
        bound = inspect.signature(layer.forward).bind(*args, **kwargs)
        given = bound.arguments
        whole[:] = [given["hidden_states"]]
        for name in ("hidden_states", "per_layer_input"):
            if given.get(name) is not None:
                given[name] = _narrowed(given[name], index_BQ)
        return bound.args, bound.kwargs

    return [
        layer.register_forward_pre_hook(enter, with_kwargs=True),
        layer.input_layernorm.register_forward_pre_hook(lambda _, args: (whole.pop(),)),
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: (_narrowed(args[0], index_BQ),)),
    ]


class _Narrow:
    """A pre-hook of the layers: their inputs at the positions alone."""

    def __init__(self, first: Any, index_BQ: torch.Tensor) -> None:
        self._first, self._index = first, index_BQ
        self._tokens = 0
        self._of_kind: dict[str, tuple[Any, Any]] = {}  # rotary embeddings and mask, once for each kind of layer

    def __call__(self, layer: Any, args: Any, kwargs: Any) -> Any:
        bound = inspect.signature(layer.forward).bind(*args, **kwargs)
        given, kind = bound.arguments, layer.self_attn.layer_type
        if layer is self._first:
            self._tokens = given["hidden_states"].shape[-2]
            given["hidden_states"] = _narrowed(given["hidden_states"], self._index)
        if kind not in self._of_kind:
            rotary = tuple(_narrowed(x, self._index) for x in given["position_embeddings"])
            self._of_kind[kind] = rotary, self._queries_of(given["attention_mask"])
        given["position_embeddings"], given["attention_mask"] = self._of_kind[kind]
        if given.get("per_layer_input") is not None:
            given["per_layer_input"] = _narrowed(given["per_layer_input"], self._index)
        return bound.args, bound.kwargs

    def _queries_of(self, mask: torch.Tensor | Documents | None) -> torch.Tensor | Documents:
        if isinstance(mask, Documents):
            return mask.at(self._index)
        if mask is None:  # plain causal
            keys = torch.arange(self._tokens, device=self._index.device)
            return (self._index[..., None] >= keys)[:, None]
        return _narrowed(mask[:, 0], self._index)[:, None]


def _narrowed(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Of [..., B or 1, S, D] the positions of each row, [..., B, Q, D]."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    return x.expand(*x.shape[:-3], len(index), -1, -1)[..., rows, index, :]
