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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from gemma_tune.models.family import BY_DOCUMENT

NAME = BY_DOCUMENT
QUERIES = 256  # of a block
PRODUCTS = 1024  # tokens up to which a document of a full layer is computed by plain products


@dataclass(frozen=True)
class DocumentGroup:
    """Documents that lie side by side in a row, computed together; or padding.

    Attributes:
        row: Its row in the batch.
        start: Its first token, and `end` the one after its last.
        first: Its first query among the queries of its row, and `last` the one after its last.
        several: Whether there is more than one document in it.
        padding: Whether it is padding, which nobody sees.
    """

    row: int
    start: int
    end: int
    first: int
    last: int
    several: bool = False
    padding: bool = False


@dataclass
class Documents:
    """Where the documents of a batch lie; it takes the place of a mask.

    Attributes:
        of: The number of each token's document, [B, S].
        pieces: All tokens of all rows, in order.
        queries: The places that are queries, ascending in each row, [B, Q]; None: all.
    """

    of: torch.Tensor
    pieces: list[DocumentGroup]
    queries: torch.Tensor | None = None
    _biases: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)

    def places(self, piece: DocumentGroup) -> torch.Tensor:
        """The places of a piece's queries in its row."""
        if self.queries is None:
            return torch.arange(piece.start, piece.end, device=self.of.device)
        return self.queries[piece.row, piece.first : piece.last]

    def bias(
        self, piece: DocumentGroup, at: slice, keys: slice, window: int | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """What is added to the scores of a block, [Q, K]: 0 where a query sees a key; the same in all layers of a kind.

        Args:
            piece: The piece.
            at: The block's queries, among those of the piece.
            keys: The keys, as places in the row.
            window: How many tokens back a query sees, itself included.
            dtype: Of the scores.
        """
        name = (piece.row, piece.first + at.start, keys.start, keys.stop, window, dtype)
        if name not in self._biases:
            q, k = self.places(piece)[at, None], torch.arange(keys.start, keys.stop, device=self.of.device)
            seen = q >= k
            if window is not None:
                seen &= q - k < window
            if piece.several:
                own = self.of[piece.row]
                seen &= own[q[:, 0], None] == own[keys]
            bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._biases[name] = bias.masked_fill_(~seen, -torch.inf)
        return self._biases[name]

    def __getitem__(self, index: tuple[Any, ...]) -> Documents:
        """Some queries of all rows, as Transformers takes them of a mask: `mask[:, :, queries, :]`."""
        places = torch.arange(self.of.shape[1], device=self.of.device)[index[2]]
        return self if len(places) == self.of.shape[1] else self.at(places.expand(len(self.of), -1))

    def at(self, places_BQ: torch.Tensor) -> Documents:
        """The same documents with these queries alone, ascending in each row."""
        found = []
        for piece in self.pieces:
            row = places_BQ[piece.row].contiguous()
            first, last = torch.searchsorted(row, torch.tensor([piece.start, piece.end], device=row.device)).tolist()
            found.append(DocumentGroup(piece.row, piece.start, piece.end, first, last, piece.several, piece.padding))
        return Documents(self.of, found, places_BQ)


def documents_of(
    position_ids: torch.Tensor | None, valid_BS: torch.Tensor | None, shape: tuple[int, int], device: Any
) -> Documents:
    """The documents of a batch.

    Args:
        position_ids: Positions, which begin at 0 with each document of a packed row, [B, S]; not used beside a mask.
        valid_BS: 1 for tokens, 0 for padding; None: no padding.
        shape: B and S.
        device: Where the batch is.
    """
    if valid_BS is not None:
        of = torch.where(valid_BS.bool(), 0, -1)
    elif position_ids is not None:
        of = (position_ids.expand(shape) == 0).cumsum(-1)
    else:
        of = torch.zeros(shape, dtype=torch.long, device=device)
    pieces: list[DocumentGroup] = []
    for row, numbers in enumerate(of):
        values, lengths = torch.unique_consecutive(numbers, return_counts=True)
        start = 0
        for value, length in zip(values.tolist(), lengths.tolist(), strict=True):
            end = start + length
            last = pieces[-1] if pieces and pieces[-1].row == row else None
            if last and not last.padding and value >= 0 and end - last.start <= QUERIES:
                pieces[-1] = DocumentGroup(row, last.start, end, last.start, end, several=True)
            else:
                pieces.append(DocumentGroup(row, start, end, start, end, padding=value < 0))
            start = end
    return Documents(of, pieces)


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
    if not isinstance(attention_mask, Documents):
        given = {"scaling": scaling, "sliding_window": sliding_window, **kwargs}
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return plain
    docs = attention_mask
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows = []
    for row in range(len(query)):
        pieces = [piece for piece in docs.pieces if piece.row == row]
        q = query[row].unflatten(0, (key.shape[1], -1)).split([piece.last - piece.first for piece in pieces], -2)
        k, v = (x[row].split([piece.end - piece.start for piece in pieces], -2) for x in (key, value))
        parts = [_piece(docs, *given, scale, sliding_window) for given in zip(pieces, q, k, v, strict=True)]
        rows.append(torch.cat(parts, -2).flatten(0, 1).transpose(0, 1))
    return torch.stack(rows), None


def _piece(
    docs: Documents,
    piece: DocumentGroup,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """[k, g, queries, D] of one piece."""
    queries, tokens = q.shape[-2], k.shape[-2]
    # What padding gives is read by nobody; zeros would make gradients of Gemma 3n's norms NaN
    if piece.padding or not queries:
        return q.new_ones(*q.shape[:-1], v.shape[-1])
    if window is not None and tokens <= window:
        window = None  # all of it is near
    if window is None and tokens > PRODUCTS and queries == tokens and not piece.several:
        flat = q.flatten(0, 1)[None]
        found = functional.scaled_dot_product_attention(
            flat, k[None], v[None], is_causal=True, scale=scale, enable_gqa=True
        )
        return found[0].unflatten(0, q.shape[:2])
    places = docs.places(piece) - piece.start if docs.queries is not None else range(tokens)
    parts = []
    for start in range(0, queries, QUERIES):
        end = min(start + QUERIES, queries)
        begin = 0 if window is None else max(0, int(places[start]) - window + 1)
        most = int(places[end - 1]) + 1
        keys = slice(piece.start + begin, piece.start + most)
        bias = docs.bias(piece, slice(start, end), keys, window, q.dtype)
        parts.append(_block(q[..., start:end, :], k[:, begin:most], v[:, begin:most], scale, bias))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def _block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias_QK: torch.Tensor) -> torch.Tensor:
    heads, group, queries, _ = q.shape
    bias = bias_QK.repeat(group, 1)[None]
    scores = torch.baddbmm(bias, q.flatten(1, 2), k.transpose(1, 2), alpha=scale)
    found = torch.bmm(scores.softmax(-1), v)
    return found.view(heads, group, queries, -1)


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
