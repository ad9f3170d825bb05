"""Which blocks attention by document computes: some queries of a document, and the keys that one of them may see.

Blocks of one size are computed together, and sizes are multiples of a few tokens. So an operation has more to do,
softmax is faster by a third, and there are few shapes: a CPU takes half a millisecond to prepare products of a new one.
What fills blocks up are copies of their tokens: keys that no query sees, and queries whose results nobody reads.

Suffixes of shapes: B rows of the batch, S tokens of a row, N blocks, Q queries of a block, K keys that they meet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from gemma_tune.models.kernels.documents import BLOCK, MULTIPLE, QUERIES, DocumentGroup, Documents

_SCORES = 1 << 20  # of blocks that are computed together: a processor's cache holds them
_KEYS = 1 << 13  # of blocks whose keys are copied at once
_FAR = 1 << 30


class AttentionBlock(NamedTuple):
    """Some queries of one row, and the keys that they meet: first those of a prompt, then those of their own group.

    Attributes:
        row: The row.
        first: The first query, among those of the row, and `queries` how many there are.
        shared: The first token of the prompt that they meet, and `of_prompt` how many there are.
        start: The first of the others, and `own` how many there are.
        several: Whether they belong to more than one document.
    """

    row: int
    first: int
    queries: int
    shared: int
    of_prompt: int
    start: int
    own: int
    several: bool

    @property
    def size(self) -> tuple[int, int]:
        """Its queries and keys when it is filled up."""
        queries, keys = (-(-n // MULTIPLE) * MULTIPLE for n in (self.queries, self.of_prompt + self.own))
        return queries, keys


Long = tuple[int, int, list[AttentionBlock]]


class BlockBatch(NamedTuple):
    """Blocks of one size.

    Attributes:
        size: Their queries and keys.
        bias: What is added to their scores, [N, Q, K]: 0 where a query sees a key, else the lowest number.
    """

    size: tuple[int, int]
    bias: torch.Tensor


class KeysPart(NamedTuple):
    """Batches whose keys are copied at once.

    Attributes:
        batches: In the order of their blocks.
        keys: Of each key of each head of each block its row in [B · S · heads of keys, D].
        bags: Where in `keys` there are copies of these rows, one row after the other, without what fills blocks up.
        bounds: Where in `bags` those of each row begin, and the end.
    """

    batches: list[BlockBatch]
    keys: torch.Tensor
    bags: torch.Tensor
    bounds: torch.Tensor


class AttentionPlan(NamedTuple):
    """What layers of one kind compute.

    Attributes:
        parts: By plain products.
        queries: Of each query of each head of keys of each of their blocks its row in [B · Q · heads of keys, gD].
        results: Of each of those rows its place in `queries`; where there is none the length of `queries`.
        filling: The places in `queries` that fill blocks up.
        long: The row and the number in it of each group that is torch's kernel's, and its blocks: none where it is a
            whole document.
        long_queries: The places of these queries in [B · queries].
        long_biases: What is added to the scores of these blocks, one after the other, [queries, keys]. All layers have
            the same tensor: torch's kernel keeps it for the backward pass.
    """

    parts: list[KeysPart]
    queries: torch.Tensor
    results: torch.Tensor
    filling: torch.Tensor
    long: list[Long]
    long_queries: torch.Tensor
    long_biases: list[torch.Tensor]


def plan_of(
    docs: Documents, window: int | None, heads: int, of_keys: int, dtype: torch.dtype, most: int
) -> AttentionPlan:
    """The plan of layers of one kind, made once for a forward pass and its backward pass, and kept with the documents.

    Args:
        docs: The documents.
        window: How many tokens back a query sees, itself included; None: all.
        heads: Of queries.
        of_keys: Heads of keys.
        dtype: Of the scores.
        most: Keys up to which a block that sees all is computed by plain products.
    """
    name = (window, of_keys, dtype)
    if name not in docs.plans:
        short, long = _blocks(docs, window, most)
        docs.plans[name] = _plan(docs, _together(short, heads), long, window, of_keys, dtype)
    found: AttentionPlan = docs.plans[name]
    return found


def _blocks(docs: Documents, window: int | None, most: int) -> tuple[list[AttentionBlock], list[Long]]:
    """Those for plain products, and what `AttentionPlan.long` holds."""
    short: list[AttentionBlock] = []
    long: list[Long] = []
    for row, groups in enumerate(docs.groups):
        for number, group in enumerate(groups):
            tokens, queries = group.end - group.start, group.last - group.first
            if group.padding or not queries:
                continue
            prompt = None if group.prompt is None else groups[group.prompt]
            sees_all = window is None or tokens + (prompt.end - prompt.start if prompt else 0) <= window
            if sees_all and not prompt and not group.several and queries == tokens > most:
                long.append((row, number, []))
                continue
            blocks = list(_of_group(docs, group, prompt, _FAR if window is None else window))
            beyond = (n for n, block in enumerate(blocks) if sees_all and block.of_prompt + block.own > most)
            rest = next(beyond, len(blocks))
            short += blocks[:rest]
            if blocks[rest:]:
                long.append((row, number, [*_joined(blocks[rest:])]))
    return short, long


def _joined(blocks: list[AttentionBlock]) -> Iterator[AttentionBlock]:
    """Those that see all, in blocks of `QUERIES`: torch's kernel is given copies of a block's keys."""
    together = QUERIES // BLOCK
    for at in range(0, len(blocks), together):
        first, last = blocks[at], blocks[min(at + together, len(blocks)) - 1]
        queries, own = last.first + last.queries - first.first, last.start + last.own - first.start
        yield first._replace(queries=queries, own=own)


def _of_group(
    docs: Documents, group: DocumentGroup, prompt: DocumentGroup | None, window: int
) -> Iterator[AttentionBlock]:
    places = docs.places(group)
    starts = docs.starts(group)
    tokens = prompt.end - prompt.start if prompt else 0
    for at in range(0, len(places), BLOCK):
        some = places[at : at + BLOCK]
        start = max(starts[some[0] - group.start], some[0] - window + 1)
        # The first token of a document, of which there may be one among several, sees most of the prompt
        before = tokens + (0 if group.several else some[0] - group.start)
        unseen = min(tokens, max(0, before - window + 1))
        shared = prompt.start + unseen if prompt else 0
        first, own = group.first + at, some[-1] + 1 - start
        yield AttentionBlock(group.row, first, len(some), shared, tokens - unseen, start, own, group.several)


def _together(blocks: list[AttentionBlock], heads: int) -> list[list[AttentionBlock]]:
    """Those that are computed together."""
    found: dict[tuple[int, int], list[AttentionBlock]] = defaultdict(list)
    for block in blocks:
        found[block.size].append(block)
    return [
        some[i : i + most]
        for (queries, keys), some in sorted(found.items())
        for most in [max(1, _SCORES // (queries * keys * heads))]
        for i in range(0, len(some), most)
    ]


class _Places:
    """Where the tokens of blocks of one size are.

    Attributes:
        queries: In [B · queries], [N, Q], and `is_query` which of them don't fill a block up.
        keys: In [B · S], [N, K], and `is_key` which of them don't fill a block up.
        of_prompt: Which keys are those of a prompt.
        several: Whether there is a block with several documents.
        alike: Whether the blocks see the same keys.
    """

    def __init__(self, docs: Documents, blocks: list[AttentionBlock]) -> None:
        row, first, queries, shared, of_prompt, start, own, several = np.array(blocks)[:, :, None].swapaxes(0, 1)
        at_q, at_k = (np.arange(n) for n in blocks[0].size)
        mine = at_k - of_prompt
        self.queries = row * docs.width + first + np.minimum(at_q, queries - 1)
        self.keys = row * docs.of.shape[1] + np.where(mine < 0, shared + at_k, start + np.minimum(mine, own - 1))
        self.is_query, self.is_key, self.of_prompt = at_q < queries, mine < own, mine < 0
        self.several = bool(several.any())
        same = all(bool((x == x[0]).all()) for x in (queries, of_prompt, own))
        self.alike = same and docs.queries is None and not self.several


def _plan(
    docs: Documents,
    together: list[list[AttentionBlock]],
    long: list[Long],
    window: int | None,
    heads: int,
    dtype: torch.dtype,
) -> AttentionPlan:
    rows, tokens, device = len(docs.of), docs.of.shape[1], docs.of.device
    places = [_Places(docs, some) for some in together]
    batches = [
        BlockBatch(some[0].size, _bias(docs, at, window, dtype)) for some, at in zip(together, places, strict=True)
    ]
    queries = _of_heads([at.queries for at in places], heads)
    is_query = _of_heads([at.is_query for at in places], heads, numbers=False)
    results = np.full(rows * docs.width * heads, len(queries))
    results[queries[is_query]] = is_query.nonzero()[0]
    parts: list[list[int]] = []
    room = 0
    for number, at in enumerate(places):
        if at.keys.size > room:
            parts.append([])
            room = _KEYS
        parts[-1].append(number)
        room -= at.keys.size
    made = []
    for part in parts:
        keys = _of_heads([places[n].keys for n in part], heads)
        there = _of_heads([places[n].is_key for n in part], heads, numbers=False).nonzero()[0]
        bags = there[keys[there].argsort(kind="stable")]
        bounds = np.zeros(rows * tokens * heads + 1, dtype=int)
        np.bincount(keys[there], minlength=len(bounds) - 1).cumsum(out=bounds[1:])
        made.append(
            KeysPart([batches[n] for n in part], *(torch.from_numpy(x).to(device) for x in (keys, bags, bounds)))
        )
    of_long = [
        np.arange(some[0].first if some else group.first, group.last) + row * docs.width
        for row, number, some in long
        for group in [docs.groups[row][number]]
    ]
    long_queries = np.concatenate([np.zeros(0, dtype=int), *of_long])
    biases = [
        _bias(docs, _Places(docs, [block]), None, dtype)[0, : block.queries, : block.of_prompt + block.own]
        for _, _, some in long
        for block in some
    ]
    found = (queries, results, (~is_query).nonzero()[0], long_queries)
    of_queries, of_results, filling, of_kernel = (torch.from_numpy(x).to(device) for x in found)
    return AttentionPlan(made, of_queries, of_results, filling, long, of_kernel, biases)


def _of_heads(places: list[Any], heads: int, numbers: bool = True) -> Any:
    """Of [N, tokens] of several batches those of each head of each block; of numbers, with the head the fastest."""
    each = np.arange(heads)[:, None]
    found = [x[:, None] * heads + each if numbers else x[:, None].repeat(heads, 1) for x in places]
    return np.concatenate([np.zeros(0, dtype=int if numbers else bool), *(x.reshape(-1) for x in found)])


def _bias(docs: Documents, at: _Places, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """[N, Q, K]: 0 where a query sees a key, else the lowest number."""
    some = slice(0, 1 if at.alike else None)
    device, positions, of = docs.of.device, docs.positions.flatten(), docs.of.flatten()
    q, k = (torch.from_numpy(x[some]).to(device) for x in (at.queries, at.keys))
    q = docs.tokens(q)
    # What fills a block up is after all queries
    k_at = positions[k].masked_fill(torch.from_numpy(~at.is_key[some]).to(device), _FAR)
    back = positions[q].int()[:, :, None] - k_at.int()[:, None]
    unseen = back < 0
    if window is not None and int(at.is_key.sum(1).max()) > window:
        unseen |= back >= window
    if at.several:
        unseen |= torch.from_numpy(~at.of_prompt).to(device)[:, None] & (of[q][:, :, None] != of[k][:, None])
    # A product is three times as fast as filling by a mask
    return unseen.to(dtype).mul_(torch.finfo(dtype).min).expand(len(at.queries), -1, -1)
