"""Rows of a batch that are the same are prefilled once when completions are generated (a prefix cache).

With rewards `generate` is given each prompt once for each of its completions, and computes all of these rows, up to
where they begin to differ. Here hooks of the language model narrow the prefill, its first forward pass with an empty
cache, to rows that differ from each other; then its output and the cache are repeated for all. Everything after it has
the shapes that it has without: the same random numbers are drawn, and completions are the same, as far as rows of a
batch equal single rows. It makes no difference to how often processes wait for each other.

Suffixes of shapes: B rows, S tokens of a row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from gemma_tune.models.kernels.compact_batch import may_share
from gemma_tune.models.unwrap import language_part

# Of a cache whose rows can be repeated; static ones are compiled, quantized ones have no rows
_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
_ROWS = ("input_ids", "attention_mask", "position_ids")  # arguments that have rows


@contextlib.contextmanager
def prefilled_once(model: Any) -> Iterator[None]:
    """Within it, `generate` prefills rows that are the same once.

    Nothing is narrowed where adapters have dropout, as rows would share its noise; where the inputs are vectors, as of
    images; and where the cache is another than a plain one that grows.

    Args:
        model: The language part, or a PeftModel around it.
    """
    language = language_part(model)
    if not may_share(language.modules()):
        yield
        return
    text, prefill = language.base_model, _Prefill()
    hooks = [
        text.register_forward_pre_hook(prefill.narrow, with_kwargs=True),
        text.register_forward_hook(prefill.repeat),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Prefill:
    """The hooks before and after a forward pass."""

    def __init__(self) -> None:
        self._which: torch.Tensor | None = None  # of each row of the batch, the one that was computed for it

    def narrow(self, text: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        self._which = None
        given = {**dict(zip(_ROWS, args, strict=False)), **given}
        if not _is_prefill(given):
            return None
        ids_BS, mask_BS = given["input_ids"], given.get("attention_mask")
        seen = ids_BS if mask_BS is None else torch.cat([ids_BS, mask_BS.to(ids_BS.dtype)], 1)
        which = torch.unique(seen, dim=0, return_inverse=True)[1]
        count, rows = int(which.max()) + 1, torch.arange(len(which), device=which.device)
        if count == len(which):
            return None
        self._which = which
        first = rows.new_zeros(count).scatter_reduce(0, which, rows, "amin", include_self=False)
        return (), {n: x[first] if n in _ROWS and x is not None and len(x) > 1 else x for n, x in given.items()}

    def repeat(self, text: Any, args: tuple[Any, ...], output: Any) -> None:
        if self._which is not None:
            output.past_key_values.batch_select_indices(self._which)
            output.last_hidden_state = output.last_hidden_state[self._which]


def _is_prefill(given: dict[str, Any]) -> bool:
    """Whether a forward pass is the first one of token ids, and has nothing with rows that isn't known here."""
    ids, mask, cache = (given.get(name) for name in ("input_ids", "attention_mask", "past_key_values"))
    if ids is None or len(ids) < 2 or not (mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 2)):
        return False
    if cache is None or not given.get("use_cache") or getattr(cache, "offloading", False):
        return False
    if cache.get_seq_length() or not all(type(layer) in _LAYERS or _is_empty(layer) for layer in cache.layers):
        return False
    others = (x for name, x in given.items() if name not in _ROWS)
    asked = ("output_hidden_states", "output_attentions", "return_shared_kv_states")
    return not any(given.get(name) for name in asked) and not any(isinstance(x, torch.Tensor) for x in others)


def _is_empty(layer: Any) -> bool:
    """Whether it stands for a layer that uses the keys and values of another."""
    return layer.is_initialized and layer.keys is None
