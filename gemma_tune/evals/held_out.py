"""Loss and perplexity on held-out rows, weighted by tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm

from gemma_tune.chat import Rendered
from gemma_tune.models.mode import evaluating

# Logits of so many positions stand in memory at once: 256 × 262,144 × 4 bytes = 256 MiB.
_POSITIONS = 256


def held_out_loss(model: Any, rows: Sequence[Rendered], pad_id: int, batch_size: int) -> dict[str, float]:
    """Mean negative log-likelihood in nats over the trained tokens of all rows, and its exponential.

    Args:
        model: The model, or a PeftModel around it.
        rows: Rendered rows.
        pad_id: Token id to pad with.
        batch_size: Rows of one forward pass.

    Returns:
        `held_out_loss`, `perplexity` and `held_out_tokens`.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))  # little padding
    total, tokens = 0.0, 0
    with evaluating(model):
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc="held-out loss", unit=" batches", disable=None, leave=False):
            batch = [rows[i] for i in order[start : start + batch_size]]
            loss, n = _batch_loss(base, batch, pad_id)
            total, tokens = total + loss, tokens + n
    mean = total / max(tokens, 1)
    return {"held_out_loss": mean, "perplexity": math.exp(min(mean, 700.0)), "held_out_tokens": tokens}


def _batch_loss(base: Any, batch: Sequence[Rendered], pad_id: int) -> tuple[float, int]:
    width = max(len(r.input_ids) for r in batch)
    input_ids = torch.full((len(batch), width), pad_id)
    labels = torch.full((len(batch), width), -100)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    for i, row in enumerate(batch):
        n = len(row.input_ids)
        input_ids[i, :n], labels[i, :n], mask[i, :n] = torch.tensor(row.input_ids), torch.tensor(row.labels), 1
    device = base.get_input_embeddings().weight.device
    hidden = base.model(input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False)
    targets = labels[:, 1:].to(device)
    counts = targets != -100
    hidden, targets = hidden.last_hidden_state[:, :-1][counts], targets[counts]  # [N, H], [N]
    cap = base.config.get_text_config().final_logit_softcapping
    total = 0.0
    for h, t in zip(hidden.split(_POSITIONS), targets.split(_POSITIONS), strict=True):
        logits = base.lm_head(h).float()
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        total += functional.cross_entropy(logits, t, reduction="sum").item()
    return total, int(counts.sum())
