"""Scores held-out preference pairs with a reward model."""

from __future__ import annotations

from typing import Any

from gemma_tune.data.pairs import Pairs
from gemma_tune.evals.base import ScoredRow, mean
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.evals.samples import asked_text, row_ids
from gemma_tune.models.classifier import scores


def score_pairs(model: Any, tokenizer: Any, pairs: Pairs, batch_size: int) -> Evaluation:
    """Scores both answers of each held-out pair.

    Args:
        model: A classifier with one label, or a PeftModel around it.
        tokenizer: Its tokenizer.
        pairs: Held-out pairs; may be empty.
        batch_size: Conversations per forward pass.

    Returns:
        `reward_accuracy` (share of pairs whose chosen answer has the higher score), `reward_margin` (mean difference),
        `reward_chosen` and `reward_rejected` (mean scores) and `reward_pairs`; nothing without pairs.
    """
    records = pairs.records
    if not records:
        return Evaluation()
    both = [pairs.dataset[i] for i in range(len(records))]
    found = scores(
        model,
        [row[side] for row in both for side in ("chosen_ids", "rejected_ids")],
        tokenizer.pad_token_id,
        batch_size,
    )
    chosen, rejected = found[::2], found[1::2]
    ids, prompts = row_ids(records), [asked_text(tokenizer, record) for record in records]
    margins: list[ScoredRow] = [
        {"id": i, "score": a - b, "prompt": prompt}
        for i, a, b, prompt in zip(ids, chosen, rejected, prompts, strict=True)
    ]
    right: list[ScoredRow] = [{**row, "score": float(row["score"] > 0)} for row in margins]
    figures = {
        "reward_accuracy": mean(right),
        "reward_margin": mean(margins),
        "reward_chosen": sum(chosen) / len(chosen),
        "reward_rejected": sum(rejected) / len(rejected),
        "reward_pairs": len(records),
    }
    return Evaluation(figures, {"reward_accuracy": right, "reward_margin": margins})
