"""How often a model gives the chosen answer of a held-out pair the higher likelihood."""

from __future__ import annotations

import math

from gemma_tune.data.pairs import render_pair
from gemma_tune.data.records import BadRow
from gemma_tune.engines.base import Engine
from gemma_tune.errors import UserError
from gemma_tune.evals.base import Evaluator, Inputs, Outcome, ScoredRow, mean
from gemma_tune.evals.samples import asked_text, row_ids


def prepare(inputs: Inputs) -> Evaluator:
    """Log-likelihood of both answers to each held-out prompt.

    Both are truncated to `train.max_length` tokens; a pair that is equal within that length doesn't count.

    Returns:
        An evaluator that returns `preference_accuracy` (share of pairs whose chosen answer has the higher
        log-likelihood, summed over its tokens), `preference_accuracy_per_token` (the same with means over tokens, so
        that a longer answer has no disadvantage), `preference_margin` (mean difference of the sums, nats),
        `preference_chosen_loss` (of the chosen answers, nats per token) and `preference_pairs`; nothing without
        held-out rows.

    Raises:
        UserError: A held-out row isn't a pair.
    """
    records, pairs = [], []
    for record in inputs.held_out.records:
        try:
            pair = render_pair(record, inputs.tokenizer).cut(inputs.cfg.train.max_length)
        except BadRow as error:
            raise UserError(f"eval.evaluators: preference: {error}") from error
        if pair.chosen != pair.rejected:
            records.append(record)
            pairs.append(pair)
    ids = row_ids(records)
    prompts = [asked_text(inputs.tokenizer, record) for record in records]

    def evaluate(engine: Engine, limit: int | None = None) -> Outcome:
        if not pairs:
            return Outcome({})
        sides = [side for pair in pairs for side in pair.sides]
        losses = engine.losses(sides, "preference")
        margins = [worse - better for better, worse in zip(losses[::2], losses[1::2], strict=True)]
        per_token = [
            worse / len(pair.rejected) - better / len(pair.chosen)
            for pair, better, worse in zip(pairs, losses[::2], losses[1::2], strict=True)
        ]
        rows = {
            name: [
                {"id": i, "score": float(margin > 0), "prompt": prompt}
                for i, margin, prompt in zip(ids, found, prompts, strict=True)
            ]
            for name, found in (("preference_accuracy", margins), ("preference_accuracy_per_token", per_token))
        }
        figures: dict[str, float] = {name: mean(scored) for name, scored in rows.items()}
        margin_rows: list[ScoredRow] = [{"id": i, "score": margin} for i, margin in zip(ids, margins, strict=True)]
        figures |= {
            "preference_margin": mean(margin_rows),
            "preference_chosen_loss": math.fsum(losses[::2]) / sum(len(pair.chosen) for pair in pairs),
            "preference_pairs": len(pairs),
        }
        return Outcome(figures, {**rows, "preference_margin": margin_rows})

    return evaluate
