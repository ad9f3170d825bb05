"""Attention of packed and padded rows document by document: no mask of a whole row, and windows cost what they see.

A dense mask has an entry for each pair of tokens of a packed row, nearly all of them false, and a kernel computes the
products of those all the same. Here the queries of a document, or of several short ones together, meet only the keys
that one of them may see, a block of queries at a time. So sliding layers cost length x window, and full layers the sum
of the documents' squares. Short documents are computed by plain products, which are faster on a CPU below some thousand
tokens than torch's kernel; long ones in full layers by that kernel, which stores no scores.

It is one of Transformers' attention functions (`AttentionInterface`), `by_document`; where it is given a mask, as
generation does, it is SDPA. The function `by_document` makes a model's forward passes use it.

Suffixes of shapes: B rows, S tokens of a row, h query heads, k heads of keys, g query heads for each of them, D head
size, Q queries of a block, K keys that they meet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from gemma_tune.models.family import BY_DOCUMENT
from gemma_tune.models.kernels.attention_plan import AttentionBlock, AttentionPlan, plan_of
from gemma_tune.models.kernels.block_attention import block_attention
from gemma_tune.models.kernels.documents import DocumentGroup, Documents, documents_of

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
    docs, (heads, of_keys) = attention_mask, (query.shape[1], key.shape[1])
    plan = plan_of(docs, sliding_window, heads, of_keys, value.dtype, PRODUCTS)
    found = block_attention(query, key, value, plan, scale)
    if plan.long:
        long = torch.cat(list(_long(docs, plan, query, key, value, scale))).to(found.dtype)
        found = found.flatten(0, 1).index_copy(0, plan.long_queries, long).view(found.shape)
    return found, None


def _long(
    docs: Documents, plan: AttentionPlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> Iterator[torch.Tensor]:
    """Of each of the plan's long groups [queries, h, D], by torch's kernel, which keeps no scores."""
    rows: dict[int, tuple[Sequence[torch.Tensor], ...]] = {}
    biases = iter(plan.long_biases)
    for row, number, blocks in plan.long:
        groups = docs.groups[row]
        if row not in rows:
            tokens = [group.end - group.start for group in groups]
            queries = [group.last - group.first for group in groups]
            rows[row] = tuple(x[row].split(n, -2) for x, n in ((query, queries), (key, tokens), (value, tokens)))
        q, k, v = (parts[number] for parts in rows[row])
        if not blocks:
            yield _kernel(q, k, v, scale, is_causal=True)
        for block in blocks:
            start = block.first - groups[number].first
            of_keys = [_of_keys(parts, groups, number, block) for parts in rows[row][1:]]
            some = q[:, start : start + block.queries]
            yield _kernel(some, of_keys[0], of_keys[1], scale, attn_mask=next(biases))


def _of_keys(
    parts: Sequence[torch.Tensor], groups: list[DocumentGroup], number: int, block: AttentionBlock
) -> torch.Tensor:
    """The keys that a block meets, or values, of a row's in parts."""
    start = block.start - groups[number].start
    own = parts[number][:, start : start + block.own]
    prompt = groups[number].prompt
    return own if prompt is None else torch.cat([parts[prompt][:, -block.of_prompt :], own], 1)


def _kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, **mask: Any) -> torch.Tensor:
    found = functional.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale, enable_gqa=True, **mask)
    return found[0].transpose(0, 1)


def _block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias_QK: torch.Tensor) -> torch.Tensor:
    heads, group, queries, _ = q.shape
    bias = bias_QK.repeat(group, 1)[None]
    scores = torch.baddbmm(bias, q.flatten(1, 2), k.transpose(1, 2), alpha=scale)
    found = torch.bmm(scores.softmax(-1), v)
    return found.view(heads, group, queries, -1)


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
    """Whether SDPA can compute a language part's attention, and ours gives the same: layers take a mask by their kind,
    which is causal, and there is no dropout of attention."""
    config = model.config
    causal = getattr(config, "use_bidirectional_attention", None) not in (True, "all")
    plain = causal and not getattr(config, "attention_dropout", 0)
    return config._attn_implementation in ("sdpa", BY_DOCUMENT) and plain and bool(getattr(config, "layer_types", None))


@contextlib.contextmanager
def by_document(model: Any) -> Iterator[None]:
    """Within it, forward passes of a language part without a cache attend document by document.

    Args:
        model: The language part; see `has_documents`.
    """
    own = model.config._attn_implementation
    model.set_attn_implementation(BY_DOCUMENT)
    hook = model.base_model.register_forward_pre_hook(_with_documents, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        model.set_attn_implementation(own)


def _with_documents(text: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
    given = {**dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False)), **given}
    mask = given.get("attention_mask")
    if text.config._attn_implementation != BY_DOCUMENT:  # an evaluation during training
        return None
    if given.get("use_cache") or given.get("past_key_values") is not None:
        return None
    if mask is not None and (isinstance(mask, dict) or mask.ndim != 2):
        return None
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    docs = documents_of(given.get("position_ids"), mask, tuple(tokens.shape[:2]), tokens.device)
    return (), {**given, "attention_mask": dict.fromkeys(("full_attention", "sliding_attention"), docs)}


AttentionInterface.register(BY_DOCUMENT, attention_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)
