"""How likely a model finds the better and the worse answers of held-out rows: pairs, or labelled answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gemma_tune.chat import Rendered
from gemma_tune.data.pairs import render_pair
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.unpaired import render_labelled
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
        `preference_chosen_loss` (of the chosen answers, nats per token) and `preference_pairs`; and for labelled
        answers the metrics of `_of_labels`. Nothing without held-out rows.

    Raises:
        UserError: A held-out row is neither a pair nor a labelled answer.
    """
    labelled = [record for record in inputs.held_out.records if record.desirable is not None]
    of_labels = _of_labels(inputs, labelled) if labelled else None
    records, pairs = [], []
    for record in inputs.held_out.records:
        if record.desirable is not None:
            continue
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
        labels = of_labels(engine) if of_labels else Outcome({})
        if not pairs:
            return labels
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
        return Outcome({**figures, **labels.figures}, {**rows, "preference_margin": margin_rows, **labels.rows})

    return evaluate


def _of_labels(inputs: Inputs, records: Sequence[Record]) -> Callable[[Engine], Outcome]:
    """Losses of labelled answers.

    Returns:
        A function that returns `preference_desirable_loss` and `preference_undesirable_loss` (means over the good and
        over the bad answers, of nats per token) and `preference_auc`: how often a good answer has a lower loss per
        token than a bad one, over all such pairs of rows, whatever their prompts; one half says nothing.
    """
    used: list[tuple[Record, Rendered]] = []
    for record in records:
        try:
            (side,) = render_labelled(record, inputs.tokenizer).cut(inputs.cfg.train.max_length).sides
        except BadRow as error:
            raise UserError(f"eval.evaluators: preference: {error}") from error
        if side.trained_tokens:
            used.append((record, side))
    ids = row_ids([record for record, _ in used])
    prompts = [asked_text(inputs.tokenizer, record) for record, _ in used]

    def evaluate(engine: Engine) -> Outcome:
        losses = engine.losses([side for _, side in used], "preference")
        found: dict[str, list[ScoredRow]] = {"desirable": [], "undesirable": []}
        for (record, side), i, prompt, loss in zip(used, ids, prompts, losses, strict=True):
            row: dict[str, Any] = {"id": i, "score": loss / side.trained_tokens}
            found["desirable" if record.desirable else "undesirable"].append({**row, "prompt": prompt})
        rows = {f"preference_{name}_loss": scored for name, scored in found.items() if scored}
        bad = [row["score"] for row in found["undesirable"]]
        if bad and found["desirable"]:
            shares = [
                {**row, "score": sum((row["score"] < b) + (row["score"] == b) / 2 for b in bad) / len(bad)}
                for row in found["desirable"]
            ]
            rows = {"preference_auc": shares, **rows}
        return Outcome({name: mean(scored) for name, scored in rows.items()}, rows)

    return evaluate
