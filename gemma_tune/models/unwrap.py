"""The language part inside whatever is around it, and its batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gemma_tune.chat import Rendered


def language_part(model: Any) -> Any:
    """The model itself, or that inside a PeftModel, with its adapters on."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def padded(base: Any, rows: Sequence[Rendered], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Rows side by side on the model's device, padded on the right: `input_ids`, `labels`, `attention_mask`, [B, S]."""
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
