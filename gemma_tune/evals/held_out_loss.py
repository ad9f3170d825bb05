"""Loss and perplexity on held-out rows, weighted by tokens."""

from __future__ import annotations

import math

from gemma_tune.engines.base import Engine
from gemma_tune.evals.base import Evaluator, Inputs, Outcome
from gemma_tune.evals.samples import asked_text, row_ids


def prepare(inputs: Inputs) -> Evaluator:
    """Mean negative log-likelihood in nats over the trained tokens of all held-out rows, and its exponential.

    Returns:
        An evaluator that gives `held_out_loss`, `perplexity` and `held_out_tokens`, or nothing without held-out rows.
        Those rows whose text is kept are listed with a mean loss each.
    """
    rows = inputs.held_out
    ids = row_ids(rows.records)
    weights = [row.trained_tokens for row in rows.rendered]
    prompts = [asked_text(inputs.tokenizer, record) for record in rows.records]

    def evaluate(engine: Engine, limit: int | None = None) -> Outcome:
        if not weights:
            return Outcome({})
        losses = engine.losses(rows.rendered, "held-out loss")
        loss, tokens = math.fsum(losses) / sum(weights), sum(weights)
        figures = {"held_out_loss": loss, "perplexity": math.exp(min(loss, 700.0)), "held_out_tokens": tokens}
        kept = [
            {"id": i, "score": total / n, "weight": n, "prompt": prompt}
            for i, total, n, prompt in zip(ids, losses, weights, prompts, strict=False)
        ]
        return Outcome(figures, {"held_out_loss": kept})

    return evaluate
