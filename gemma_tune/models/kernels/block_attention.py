"""Attention of the blocks of a plan by plain products, and its gradients written out by hand.

What softmax gives is kept for the backward pass, as autograd would keep it, but neither the blocks' queries, keys and
values nor their output. The gradients of a key that several blocks meet are summed up in float32.

Suffixes of shapes: B rows, S tokens of a row, Q queries of a row, h query heads, k heads of keys, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gemma_tune.models.kernels.attention_plan import AttentionPlan, BlockBatch, KeysPart


def block_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan, scale: float
) -> torch.Tensor:
    """Attention of queries, [B, h, Q, D], to keys, [B, k, S, D] → [B, Q, h, D].

    Queries of padding get ones: of zeros Gemma 3n's norms would have NaN gradients.

    In mixed precision it is computed in autocast's type.
    """
    device = q.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q.dtype
    given = [x.to(dtype) for x in (q, k, v)]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    found: torch.Tensor = _BlockAttention.apply(*given, plan, scale, keep)
    return found


class _BlockAttention(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan, scale: float, keep: bool
    ) -> torch.Tensor:
        heads = k.shape[1]
        some_q = _copied(q, plan.queries, heads).mul_(scale)
        # Of padding, which nobody reads, zeros would make gradients of Gemma 3n's norms NaN
        found = _results(some_q, 1.0)
        given = (_of_batches(x, _batches(plan), 0, heads, k.shape[3]) for x in (some_q, found))
        queries = iter(zip(*given, strict=True))
        scores, kept = _scores(q, plan), []
        with torch.autocast(q.device.type, enabled=False):
            for part in plan.parts:
                keys = [_of_batches(_copied(x, part.keys, heads), part.batches, 1, heads, x.shape[3]) for x in (k, v)]
                for batch, k_b, v_b, (q_b, found_b) in zip(part.batches, *keys, queries, strict=False):
                    p = _biased(scores, batch, q_b).baddbmm_(q_b, k_b.transpose(1, 2)).softmax(-1)
                    torch.bmm(p, v_b, out=found_b)
                    if keep:
                        kept.append(p)
        if keep:
            ctx.save_for_backward(q, k, v, *kept)
            ctx.plan, ctx.scale = plan, scale
        return found.index_select(0, plan.results).view(len(q), q.shape[2], q.shape[1], q.shape[3])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient_BQhD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        plan, heads, size = ctx.plan, k.shape[1], q.shape[3]
        some_q = _copied(q, plan.queries, heads).mul_(ctx.scale)
        of_found = _copied(gradient_BQhD.transpose(1, 2), plan.queries, heads).index_fill_(0, plan.filling, 0.0)
        of_q = _results(some_q, 0.0)
        given = (_of_batches(x, _batches(plan), 0, heads, size) for x in (some_q, of_found, of_q))
        queries = iter(zip(kept, *given, strict=True))
        scores, of_k, of_v = _scores(q, plan), None, None
        for part in plan.parts:
            some_k, some_v = (_copied(x, part.keys, heads) for x in (k, v))
            parts_k, parts_v = torch.empty_like(some_k), torch.empty_like(some_v)
            keys = [_of_batches(x, part.batches, 1, heads, size) for x in (some_k, some_v, parts_k, parts_v)]
            for k_b, v_b, of_k_b, of_v_b, (p, q_b, of_found_b, of_q_b) in zip(*keys, queries, strict=False):
                torch.bmm(p.transpose(1, 2), of_found_b, out=of_v_b)
                of_p = torch.bmm(of_found_b, v_b.transpose(1, 2), out=scores[: p.numel()].view(p.shape))
                of_scores = torch._softmax_backward_data(of_p, p, -1, p.dtype)
                torch.bmm(of_scores, k_b, out=of_q_b)
                torch.bmm(of_scores.transpose(1, 2), q_b, out=of_k_b)
            of_k, of_v = _summed(of_k, parts_k, part), _summed(of_v, parts_v, part)
        of_q = of_q.index_select(0, plan.results).mul_(ctx.scale)
        return _given(of_q, q), _given(of_k, k), _given(of_v, v), None, None, None


def _copied(x_BhSD: torch.Tensor, places: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of [B · S · k, D], or of [B · Q · k, gD] of queries' heads."""
    rows = x_BhSD.transpose(1, 2).reshape(-1, x_BhSD.shape[1] // heads * x_BhSD.shape[3])
    return rows.index_select(0, places)


def _results(queries: torch.Tensor, other: float) -> torch.Tensor:
    """Room for what blocks give, as many rows, and one for queries without a block."""
    found = queries.new_empty(len(queries) + 1, queries.shape[1])
    found[-1].fill_(other)
    return found


def _scores(q: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """Room for those of any batch."""
    return q.new_empty(max((batch.bias.numel() for batch in _batches(plan)), default=0) * q.shape[1])


def _batches(plan: AttentionPlan) -> list[BlockBatch]:
    return [batch for part in plan.parts for batch in part.batches]


def _of_batches(
    rows: torch.Tensor, batches: Sequence[BlockBatch], which: int, heads: int, size: int
) -> list[torch.Tensor]:
    """Of each batch [N · k, queries · g or keys, D]."""
    counts = [len(batch.bias) * heads for batch in batches]
    tokens = [count * batch.size[which] for count, batch in zip(counts, batches, strict=True)]
    parts = rows[: sum(tokens)].split(tokens)
    return [part.view(count, -1, size) for count, part in zip(counts, parts, strict=True)]


def _biased(scores: torch.Tensor, batch: BlockBatch, q: torch.Tensor) -> torch.Tensor:
    """Room for the scores of a batch with its bias in it, [N · k, queries · g, keys]."""
    (queries, keys), blocks = batch.size, len(batch.bias)
    found = scores[: len(q) * q.shape[1] * keys]
    found.view(blocks, len(q) // blocks, queries, -1, keys).copy_(batch.bias[:, None, :, None])
    return found.view(len(q), q.shape[1], keys)


def _summed(before: torch.Tensor | None, gradients: torch.Tensor, part: KeysPart) -> torch.Tensor:
    """Gradients of [B · S · k, D] from those of the blocks' copies; of several parts in float32."""
    found = functional.embedding_bag(part.bags, gradients, part.bounds, mode="sum", include_last_offset=True)
    return found if before is None else before.to(torch.promote_types(found.dtype, torch.float32)).add_(found)


def _given(rows: torch.Tensor | None, like_BhSD: torch.Tensor) -> torch.Tensor:
    """Gradients in the shape of what they belong to, and in the order in memory that layers give it in."""
    if rows is None:
        return torch.zeros_like(like_BhSD)
    b, heads, tokens, size = like_BhSD.shape
    return rows.to(like_BhSD.dtype).view(b, tokens, heads, size).transpose(1, 2)
