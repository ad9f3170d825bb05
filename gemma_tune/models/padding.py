"""Rows of token ids side by side, as a model takes them, and back. Shapes: B rows, S tokens of the longest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from gemma_tune.chat import Rendered


def pad_rows(base: Any, rows: Sequence[Rendered], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Rows padded on the right, on the model's device: `input_ids`, `labels`, `attention_mask`, int64, [B, S]."""
    width = max(len(row.input_ids) for row in rows)
    found = {
        "input_ids": torch.full((len(rows), width), pad_id),
        "labels": torch.full((len(rows), width), -100),
        "attention_mask": torch.zeros((len(rows), width), dtype=torch.long),
    }
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        found["input_ids"][i, :n], found["labels"][i, :n] = torch.tensor(row.input_ids), torch.tensor(row.labels)
        found["attention_mask"][i, :n] = 1
    device = base.get_input_embeddings().weight.device
    return {name: value.to(device) for name, value in found.items()}


def unpad_rows(batch: Mapping[str, torch.Tensor], column: str) -> list[list[int]]:
    """The rows of a batch, in its order: without padding; rows that were packed into one come apart.

    Args:
        batch: `input_ids` and `column`, [B, S], and `position_ids` of packed rows or perhaps an `attention_mask`.
        column: `input_ids` or `labels`.
    """
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    if positions is None:
        kept = torch.ones_like(batch[column]) if mask is None else mask
        return [values[keep != 0].tolist() for values, keep in zip(batch[column], kept, strict=True)]
    found = []
    for values, places in zip(batch[column].tolist(), positions, strict=True):
        # Each padding token at the end has position 0, too, and comes out as a row without a trained token
        starts = [*(places == 0).nonzero()[:, 0].tolist(), len(values)]
        found += [values[a:b] for a, b in pairwise(starts)]
    return found
