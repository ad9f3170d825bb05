"""A batch as one row without padding, in which rows that begin with the same prompt share it.

A batch of G completions of one prompt has G·(P + C) tokens, its compact form P + G·C: each prompt but for its last
token, followed by its completions, each with that last token before it, since it predicts the completion's first. A
completion sees its prompt and itself (`Documents`), at positions that go on from the prompt's; so log-probabilities
and gradients are those of the batch, as far as rows of a batch equal single rows. The same holds for chosen and
rejected answers. What predicts nothing is left out: padding, what follows a row's last label, rows without labels.

Suffixes of shapes: B rows of the batch, S tokens of a row, T tokens of the compact form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from gemma_tune.models.kernels.documents import Documents, grouped

# A long row is filled up to a multiple by padding: on a CPU products of 767 rows in bfloat16 take 7 % longer than
# those of 768
_MULTIPLE, _LONG = 16, 256
_WORTH = 0.9  # share of a batch's tokens, with padding, above which its compact form isn't worth its parts
_SHARED = 0.05  # share of some rows' tokens that a common beginning must save to be worth its parts


def may_share(modules: Iterable[Any]) -> bool:
    """Whether rows can share what is computed of a prompt: a dropout would be one for all of them.

    Args:
        modules: Those of the language part.
    """
    return not any(isinstance(m, nn.Dropout) and m.p > 0 and m.training for m in modules)


class CompactBatch(NamedTuple):
    """A batch in its compact form.

    Attributes:
        input_ids: [1, T].
        position_ids: Of each token in its row of the batch, without padding, [1, T].
        shift_labels: The token that each position predicts, or -100, [1, T].
        documents: Takes the place of the mask.
        sources: Where each label stands in the batch, as a place in the flattened [B, S - 1], [T].
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    shift_labels: torch.Tensor
    documents: Documents
    sources: torch.Tensor

    def inputs(self) -> dict[str, Any]:
        """A forward pass's arguments."""
        masks = dict.fromkeys(("full_attention", "sliding_attention"), self.documents)
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "attention_mask": masks}

    def in_batch(self, values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Values of its positions, [1, T], as those of the batch, [B, S - 1]; 0 where there is no label."""
        there = self.shift_labels[0] != -100
        flat = values.new_zeros(shape.numel())
        return flat.scatter(0, self.sources[there], values[0, there]).view(shape)


def compact(
    ids_BS: torch.Tensor, valid_BS: torch.Tensor | None, labels_BS: torch.Tensor, share: bool = True
) -> CompactBatch | None:
    """The compact form of a batch; None where it would save less than a tenth of the tokens.

    Args:
        ids_BS: Token ids.
        valid_BS: 1 for tokens, 0 for padding on either side.
        labels_BS: The ids of tokens that are predicted, else -100.
        share: Whether rows share their prompts.
    """
    groups = _groups(ids_BS, valid_BS, labels_BS, share)
    if _tokens(groups, ids_BS.numel()) is None:
        return None
    ids: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    sources: list[int] = []
    lengths: list[int] = []
    prompts: list[int] = []
    width = ids_BS.shape[1] - 1
    for prompt, rows in groups:
        mine = -1
        if len(prompt) > 1:
            mine = len(lengths)
            ids += prompt[:-1]
            positions += range(len(prompt) - 1)
            labels += [-100] * (len(prompt) - 1)
            sources += [0] * (len(prompt) - 1)
            lengths.append(len(prompt) - 1)
            prompts.append(-1)
        for row, tokens_of in rows:
            ids += [prompt[-1], *(token for _, token, _ in tokens_of[:-1])]
            positions += range(len(prompt) - 1, len(prompt) - 1 + len(tokens_of))
            labels += [label for _, _, label in tokens_of]
            sources += [row * width + place - 1 for place, _, _ in tokens_of]
            lengths.append(len(tokens_of))
            prompts.append(mine)
    fill = -len(ids) % _MULTIPLE if len(ids) >= _LONG else 0
    if fill:
        ids += ids[:1] * fill
        positions += [0] * fill
        labels += [-100] * fill
        sources += [0] * fill
        lengths.append(fill)
        prompts.append(-1)
    made = [torch.tensor(values, device=ids_BS.device) for values in (ids, positions, labels, sources)]
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(ids_BS.device)
    kinds = [*range(len(lengths))]
    if fill:
        kinds[-1] = -1
    documents = Documents(number[None], made[1][None], [grouped(0, lengths, kinds, prompts)])
    return CompactBatch(made[0][None], made[1][None], made[2][None], documents, made[3])


def computed_tokens(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> int:
    """Tokens that the forward pass of a batch computes: those of its compact form where it has one, else all places.

    Args:
        rows: Token ids and labels of each row, without padding.
    """
    ids, labels = (
        pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=padding)
        for values, padding in zip(zip(*rows, strict=True), (0, -100), strict=True)
    )
    valid = pad_sequence([torch.ones(len(row)) for row, _ in rows], batch_first=True)
    found = _tokens(_groups(ids, valid, labels, share=True), ids.numel())
    return ids.numel() if found is None else found


Token = tuple[int, int, int]  # its place in the row of the batch, its id, its label


class _Row(NamedTuple):
    """A row up to its last label: its number, its tokens, and how many stand before the first label."""

    number: int
    tokens: list[Token]
    before: int

    def begins_as(self, other: _Row) -> int:
        """How many tokens before the labels of both are the same."""
        most = min(self.before, other.before)
        pairs = zip(self.tokens[:most], other.tokens[:most], strict=True)
        return next((i for i, (mine, theirs) in enumerate(pairs) if mine[1] != theirs[1]), most)


Group = tuple[list[int], list[tuple[int, list[Token]]]]


def _tokens(groups: Sequence[Group], places: int) -> int | None:
    """Tokens of the compact form of a batch; None where it isn't worth its parts.

    Args:
        groups: As `_groups` gives them.
        places: B·S, padding among them.
    """
    tokens = sum(max(0, len(prompt) - 1) + sum(len(row) for _, row in rows) for prompt, rows in groups)
    return tokens if groups and tokens <= _WORTH * places else None


def _groups(ids_BS: torch.Tensor, valid_BS: torch.Tensor | None, labels_BS: torch.Tensor, share: bool) -> list[Group]:
    """Rows that share their beginning, with its tokens and those of each row from there on; alone, a row shares one.

    Where no row has a label (DAPO leaves out completions that were cut off, perhaps all), two tokens of one stand for
    all: a way for gradients, which are 0.
    """
    rows: list[_Row] = []
    unlabelled: list[_Row] = []
    valid = [[1] * ids_BS.shape[1]] * len(ids_BS) if valid_BS is None else valid_BS.tolist()
    for number, (ids, here, labels) in enumerate(zip(ids_BS.tolist(), valid, labels_BS.tolist(), strict=True)):
        tokens = [(place, ids[place], labels[place]) for place in range(len(ids)) if here[place]]
        labelled = [n for n, (_, _, label) in enumerate(tokens) if n and label != -100]
        if labelled:
            rows.append(_Row(number, tokens[: labelled[-1] + 1], labelled[0]))
        elif len(tokens) > 1:
            unlabelled.append(_Row(number, tokens[:2], 1))
    rows = rows or unlabelled[:1]
    parts = _parts(rows) if share else [([row], 1) for row in rows]
    return [
        ([token for _, token, _ in of[0].tokens[:begin]], [(row.number, row.tokens[begin:]) for row in of])
        for of, begin in parts
    ]


def _parts(rows: list[_Row]) -> list[tuple[list[_Row], int]]:
    """The rows in groups, each with how many tokens its rows begin with alike: those that leave the fewest tokens.

    Sorted by their tokens, rows that share most lie side by side, so groups are cut out of that order.
    """
    ordered = sorted(rows, key=lambda row: [token for _, token, _ in row.tokens[: row.before]])
    alike = [one.begins_as(other) for one, other in pairwise(ordered)]
    best = [(0, 0, 1)]  # up to each row: tokens saved, where its group begins, and with how many shared tokens
    for end, row in enumerate(ordered, 1):
        found = (best[end - 1][0], end - 1, 1)
        begin, total = row.before, len(row.tokens)
        for start in range(end - 2, -1, -1):
            begin, total = min(begin, alike[start]), total + len(ordered[start].tokens)
            saved = (end - 1 - start) * (begin - 1)
            if saved >= _SHARED * total:
                found = max(found, (best[start][0] + saved, start, begin))
        best.append(found)
    parts, end = [], len(ordered)
    while end:
        _, start, begin = best[end]
        parts.append((sorted(ordered[start:end]), begin))
        end = start
    return sorted(parts)
