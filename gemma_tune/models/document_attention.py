"""Attention of packed and padded rows document by document: no mask of a whole row, and windows cost what they see.

A dense mask has an entry for each pair of tokens of a packed row, nearly all of them false, and a kernel computes the
products of those all the same. Here the queries of a document, or of several short ones together, meet only the keys
that one of them may see, a block of queries at a time. So sliding layers cost length x window, and full layers the sum
of the documents' squares. Short documents are computed by plain products, which are faster on a CPU below some thousand
tokens than torch's kernel; long ones in full layers by that kernel, which stores no scores.

It is one of Transformers' attention functions (`AttentionInterface`), `NAME`; where it is given a mask, as generation
does, it is SDPA. `by_document` makes a model's forward passes use it.

Suffixes of shapes: B rows, S tokens of a row, h query heads, k heads of keys, g query heads for each of them, D head
size, Q queries of a block, K keys that they meet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from gemma_tune.models.documents import QUERIES, DocumentGroup, Documents, documents_of
from gemma_tune.models.family import BY_DOCUMENT

NAME = BY_DOCUMENT
_ROUND = 16  # rows of scores that products are fast with
PRODUCTS = 1024  # tokens up to which a document of a full layer is computed by plain products


def attention_by_document(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Documents | torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as Transformers' layers call it: [B, h, Q, D] of queries, [B, k, S, D] of keys → [B, Q, h, D]."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not isinstance(attention_mask, Documents):
        if query.requires_grad and attention_mask is not None and key.shape[-2] <= PRODUCTS:
            return _masked(query, key, value, scale, attention_mask), None
        given = {"scaling": scaling, "sliding_window": sliding_window, **kwargs}
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return plain
    docs = attention_mask
    rows = []
    for row, groups in enumerate(docs.groups):
        q = query[row].unflatten(0, (key.shape[1], -1)).split([group.last - group.first for group in groups], -2)
        k, v = (x[row].split([group.end - group.start for group in groups], -2) for x in (key, value))
        parts = []
        for n, group in enumerate(groups):
            prompt = None if group.prompt is None else (k[group.prompt], v[group.prompt])
            parts.append(_of_group(docs, group, q[n], (k[n], v[n]), prompt, scale, sliding_window))
        rows.append(torch.cat(parts, -2).flatten(0, 1).transpose(0, 1))
    return torch.stack(rows), None


KeysAndValues = tuple[torch.Tensor, torch.Tensor]  # [k, tokens, D] each


def _of_group(
    docs: Documents,
    group: DocumentGroup,
    q: torch.Tensor,
    own: KeysAndValues,
    prompt: KeysAndValues | None,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """[k, g, queries, D] of one group."""
    queries, tokens = q.shape[-2], own[0].shape[-2]
    # What padding gives is read by nobody; zeros would make gradients of Gemma 3n's norms NaN
    if group.padding or not queries:
        return q.new_ones(*q.shape[:-1], own[1].shape[-1])
    before = 0 if prompt is None else prompt[0].shape[-2]
    if window is not None and before + tokens <= window:
        window = None  # all of it is near
    if window is None and not before and tokens > PRODUCTS and queries == tokens and not group.several:
        flat = q.flatten(0, 1)[None]
        k, v = (x[None] for x in own)
        found = functional.scaled_dot_product_attention(flat, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return found[0].unflatten(0, q.shape[:2])
    # Positions of queries, counted from the first of all keys: of several documents all own keys are met
    at = docs.query_positions(group) - (0 if before else docs.positions[group.row, group.start])
    parts = []
    block = _ROUND * -(-queries // (-(-queries // QUERIES) * _ROUND))  # of nearly equal size: the last is no rest
    for start in range(0, queries, block):
        end = min(start + block, queries)
        begin = 0 if window is None else max(0, int(at[start:end].min()) - window + 1)
        most = int(at[end - 1]) + 1
        if group.several:
            begin, most = min(begin, before), before + tokens
        bias = docs.bias(group, slice(start, end), slice(begin, most), window, q.dtype)
        k, v = (_of_keys(n, prompt, own, before, begin, most) for n in range(2))
        compute = _block if most - begin <= PRODUCTS or window is not None else _long_block
        parts.append(compute(q[..., start:end, :], k, v, scale, bias))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def _of_keys(
    n: int, prompt: KeysAndValues | None, own: KeysAndValues, before: int, begin: int, end: int
) -> torch.Tensor:
    """From a prompt's keys and then one's own those from `begin` to `end`, or values."""
    mine = own[n][:, max(0, begin - before) : end - before]
    return mine if prompt is None or begin >= before else torch.cat([prompt[n][:, begin:], mine], 1)


def _block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias_QK: torch.Tensor) -> torch.Tensor:
    heads, group, queries, _ = q.shape
    bias = bias_QK.repeat(group, 1)[None]
    scores = torch.baddbmm(bias, q.flatten(1, 2), k.transpose(1, 2), alpha=scale)
    found = torch.bmm(scores.softmax(-1), v)
    return found.view(heads, group, queries, -1)


def _long_block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias_QK: torch.Tensor) -> torch.Tensor:
    """The same by torch's kernel, which keeps no scores for the backward pass."""
    found = functional.scaled_dot_product_attention(
        q.flatten(0, 1)[None], k[None], v[None], attn_mask=bias_QK, scale=scale, enable_gqa=True
    )
    return found[0].unflatten(0, q.shape[:2])


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor) -> torch.Tensor:
    """[B, Q, h, D] of rows with images, whose masks are boolean, [B, 1, Q, S]; products, as for short documents."""
    heads = k.shape[1]
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, torch.finfo(q.dtype).min)
    found = [
        _block(row.unflatten(0, (heads, -1)), keys[0], keys[1], scale, seen[0])
        for row, seen, *keys in zip(q, bias.expand(len(q), -1, -1, -1), k, v, strict=True)
    ]
    return torch.stack(found).flatten(1, 2).transpose(1, 2)


def has_documents(model: Any) -> bool:
    """Whether a language part's layers take a mask by their kind, and SDPA can compute their attention."""
    config = model.config
    return config._attn_implementation in ("sdpa", NAME) and bool(getattr(config, "layer_types", None))


@contextlib.contextmanager
def by_document(model: Any) -> Iterator[None]:
    """Within it, forward passes of a language part without a cache attend document by document.

    Args:
        model: The language part; see `has_documents`.
    """
    own = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    hook = model.base_model.register_forward_pre_hook(_with_documents, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        model.set_attn_implementation(own)


def _with_documents(text: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
    given = {**dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False)), **given}
    mask = given.get("attention_mask")
    if text.config._attn_implementation != NAME:  # an evaluation during training
        return None
    if given.get("use_cache") or given.get("past_key_values") is not None:
        return None
    if mask is not None and (isinstance(mask, dict) or mask.ndim != 2):
        return None
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    docs = documents_of(given.get("position_ids"), mask, tuple(tokens.shape[:2]), tokens.device)
    return (), {**given, "attention_mask": dict.fromkeys(("full_attention", "sliding_attention"), docs)}


AttentionInterface.register(NAME, attention_by_document)
AttentionMaskInterface.register(NAME, sdpa_mask)
