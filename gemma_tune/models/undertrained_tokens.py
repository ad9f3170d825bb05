"""Finds undertrained tokens: adapters can't teach a model to write them, since the embedding stays frozen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

# As shares of the median over all rows.
_NEAR, _SHORT = 0.2, 0.2
_UNUSED = re.compile(r"<unused\d+>")
_LEAST_UNUSED, _ALIKE = 16, 0.5


def undertrained_tokens(model: Any, tokenizer: Any, ids: Iterable[int]) -> list[int]:
    """The ids whose row of the embedding looks untrained.

    Three signs, each with its own cause: the row is close to the mean of all rows (where Transformers puts new ones),
    its norm is very small (zeros, or a small random initialisation), or it points in the direction of the model's
    `<unused…>` tokens: rows that are never a target are all pushed the same way (Fishing for Magikarp, Land and
    Bartolo 2024). A new row of random numbers of the usual size can't be told from a trained one, and isn't found.

    Args:
        model: The base; head and embedding are one matrix.
        tokenizer: Its tokenizer.
        ids: Token ids that occur in the rows.

    Returns:
        Ids in ascending order.
    """
    embedding = model.get_input_embeddings().weight.detach()
    used = torch.tensor(sorted(set(ids)), device=embedding.device, dtype=torch.long)
    mean = embedding.mean(0, dtype=torch.float32)
    lengths, distances = (_lengths(embedding, offset) for offset in (torch.zeros_like(mean), mean))
    found = distances[used] < _NEAR * distances.median()
    found |= lengths[used] < _SHORT * lengths.median()
    unused = [i for token, i in tokenizer.get_vocab().items() if _UNUSED.fullmatch(token) and i < len(embedding)]
    if len(unused) >= _LEAST_UNUSED:
        centre = (embedding[unused].float() - mean).mean(0)
        likeness = torch.cosine_similarity(embedding[unused].float() - mean, centre[None], dim=1).quantile(0.05)
        if likeness > _ALIKE:
            # A margin of half the distance: the tokens that make up the centre are closer to it than any other
            least = likeness - (1 - likeness) / 2
            found |= torch.cosine_similarity(embedding[used].float() - mean, centre[None], dim=1) >= least
    return [int(i) for i in used[found]]


def _lengths(embedding: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Norm of each row after the offset is subtracted, [V]; in parts, since float32 copies of all rows are large."""
    return torch.cat([(part.float() - offset).norm(dim=1) for part in embedding.split(8192)])
