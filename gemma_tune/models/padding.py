"""Rows of token ids side by side, as a model takes them. Shapes: B rows, S tokens of the longest one."""

from __future__ import annotations

from collections.abc import Sequence
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
