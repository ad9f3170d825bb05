"""Where the documents of packed and padded rows lie, and which keys their queries meet.

`Documents` takes the place of a mask in `document_attention.py`. A document may have a prompt, another document of its
row that all its tokens see: so several completions of one prompt stand beside it once.

Suffixes of shapes: B rows, S tokens of a row, Q queries, K keys that they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

QUERIES = 256  # tokens of short documents that are computed together
BLOCK = 64  # queries of a block of attention
MULTIPLE = 32  # a block is filled up to multiples of it, of queries and of keys


@dataclass(frozen=True)
class DocumentGroup:
    """A document, or short ones that lie side by side and are computed together; or padding.

    Attributes:
        row: Its row in the batch.
        start: Its first token, and `end` the one after its last.
        first: Its first query among the queries of its row, and `last` the one after its last.
        prompt: The group, by its number in the row, that all its tokens see besides.
        several: Whether there is more than one document in it.
        padding: Whether it is padding, which nobody sees.
    """

    row: int
    start: int
    end: int
    first: int
    last: int
    prompt: int | None = None
    several: bool = False
    padding: bool = False


@dataclass
class Documents:
    """Where the documents of a batch lie; it takes the place of a mask.

    Attributes:
        of: The number of each token's document, [B, S].
        positions: Of each token in its document, after that one's prompt, [B, S].
        groups: Of each row, all tokens in order.
        queries: The places that are queries, ascending in each row, [B, Q]; None: all.
        plans: What layers compute, by their kind (`attention_plan.py`).
    """

    of: torch.Tensor
    positions: torch.Tensor
    groups: list[list[DocumentGroup]]
    queries: torch.Tensor | None = None
    plans: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """How many queries a row has."""
        found: int = (self.of if self.queries is None else self.queries).shape[1]
        return found

    def places(self, group: DocumentGroup) -> Sequence[int]:
        """The places of a group's queries in its row."""
        if self.queries is None:
            return range(group.start, group.end)
        found: list[int] = self.queries[group.row, group.first : group.last].tolist()
        return found

    def starts(self, group: DocumentGroup) -> Sequence[int]:
        """Where in the row the document of each token of a group begins."""
        if not group.several:
            return [group.start] * (group.end - group.start)
        of = self.of[group.row, group.start : group.end].tolist()
        found = [group.start]
        for at, (before, here) in enumerate(pairwise(of), group.start + 1):
            found.append(found[-1] if before == here else at)
        return found

    def tokens(self, queries: torch.Tensor) -> torch.Tensor:
        """Of places of queries in [B · Q] the places of their tokens in [B · S]."""
        if self.queries is None:
            return queries
        return self.queries.flatten()[queries] + queries // self.width * self.of.shape[1]

    def __getitem__(self, index: tuple[Any, ...]) -> Documents:
        """Some queries of all rows, as Transformers takes them of a mask: `mask[:, :, queries, :]`."""
        places = torch.arange(self.of.shape[1], device=self.of.device)[index[2]]
        return self if len(places) == self.of.shape[1] else self.at(places.expand(len(self.of), -1))

    def at(self, places_BQ: torch.Tensor) -> Documents:
        """The same documents with these queries alone, ascending in each row."""
        found = []
        for groups, places in zip(self.groups, places_BQ, strict=True):
            ends = torch.tensor([0, *(group.end for group in groups)], device=places.device)
            bounds = torch.searchsorted(places.contiguous(), ends).tolist()
            found.append(
                [
                    replace(group, first=first, last=last)
                    for group, first, last in zip(groups, bounds, bounds[1:], strict=False)
                ]
            )
        return Documents(self.of, self.positions, found, places_BQ)


def grouped(row: int, lengths: Sequence[int], kinds: Sequence[int], prompts: Sequence[int] = ()) -> list[DocumentGroup]:
    """The groups of one row: short documents that lie side by side, and have the same prompt, are computed together.

    Args:
        row: The number of the row.
        lengths: Of its documents, and of padding, in order.
        kinds: Of each, -1 for padding, and any other number for a document.
        prompts: Of each, the number of the document that is its prompt, or -1; prompts are never joined to others.
            Empty: none has one.
    """
    found: list[DocumentGroup] = []
    numbers: dict[int, int] = {}  # of the groups that are prompts
    before, start = None, 0
    asked = {*prompts} - {-1}
    for i, (length, kind) in enumerate(zip(lengths, kinds, strict=True)):
        end, padding = start + length, kind < 0
        what = (prompts[i] if prompts else -1, padding, i if i in asked else -1)
        last = found[-1] if found else None
        if last and what == before and not padding and i not in asked and end - last.start <= QUERIES:
            found[-1] = replace(last, end=end, last=end, several=True)
        else:
            found.append(DocumentGroup(row, start, end, start, end, numbers.get(what[0]), padding=padding))
        if i in asked:
            numbers[i] = len(found) - 1
        before, start = what, end
    return found


def document_numbers(
    position_ids: torch.Tensor | None, valid_BS: torch.Tensor | None, shape: tuple[int, ...], device: Any
) -> torch.Tensor:
    """The number of the document that each token of a batch belongs to, [B, S]; -1 for padding.

    Args:
        position_ids: Positions, which begin at 0 with each document of a packed row, [B, S]; not used beside a mask.
        valid_BS: 1 for tokens, 0 for padding; None: no padding.
        shape: B and S.
        device: Where the batch is.
    """
    if valid_BS is not None:
        return torch.where(valid_BS.bool(), 0, -1)
    if position_ids is not None:
        return (position_ids.expand(shape) == 0).cumsum(-1)
    return torch.zeros(shape, dtype=torch.long, device=device)


def documents_of(
    position_ids: torch.Tensor | None, valid_BS: torch.Tensor | None, shape: tuple[int, int], device: Any
) -> Documents:
    """The documents of a batch, by what `document_numbers` is given."""
    of = document_numbers(position_ids, valid_BS, shape, device)
    places = torch.arange(shape[1], device=device).expand(shape)
    groups = []
    for row, numbers in enumerate(of):
        values, lengths = torch.unique_consecutive(numbers, return_counts=True)
        groups.append(grouped(row, lengths.tolist(), values.tolist()))
    return Documents(of, places, groups)
