"""PEFT's layers of the rows of the embedding that an adapter trains beside its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from gemma_tune.models.unwrap import is_of


def _is_wrapper(module: Any) -> bool:
    return is_of(module, "peft.utils.other", "TrainableTokensWrapper")


def _trained(model: Any) -> list[Any]:
    """PEFT's layers of the trained rows; that of the head takes its rows from the embedding's."""
    found = [m.token_adapter for m in model.modules() if _is_wrapper(m)]
    return [layer for layer in found if layer.tied_adapter is None]


def tell_head(model: Any) -> None:
    """Gives PEFT's layer around the head the missing bias that a plain head has: TRL's loss asks for it."""
    for module in model.modules():
        if _is_wrapper(module) and module.token_adapter.tied_adapter is not None:
            module.register_parameter("bias", None)


def fill_reference(model: Any, reference: str, adapter: str = "default") -> None:
    """Copies trained rows to TRL's copy of the adapter: TRL copies by names that these rows don't have."""
    for layer in _trained(model):
        rows = layer.trainable_tokens_delta
        if reference in rows:
            rows[reference].data.copy_(rows[adapter].data)


@contextlib.contextmanager
def rows_in_place(model: Any) -> Iterator[None]:
    """Within it, the trained rows stand in the embedding: PEFT would copy the whole embedding for each token written.

    The model computes the same: PEFT rounds the rows to the embedding's type, too.
    """
    layers = [layer for layer in _trained(model) if not layer.merged and not layer.disable_adapters]
    for layer in layers:
        layer.merge()
    tied = [m.token_adapter for m in model.modules() if _is_wrapper(m)]
    followers = [layer for layer in tied if layer.tied_adapter in layers]
    for layer in followers:  # the same matrix, so nothing is left to do but to say so
        layer.merged_adapters.extend(layer.active_adapters)
    try:
        yield
    finally:
        for layer in followers:
            layer.merged_adapters.clear()
        for layer in layers:
            layer.unmerge()
