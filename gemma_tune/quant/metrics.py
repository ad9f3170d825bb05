"""Metrics of a model on its grid: KL from the unquantized model, and the share of its loss that training recovered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gemma_tune.chat import Rendered
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.head import TopK, head_of, kl_from_top_k, trained_states
from gemma_tune.models.padding import pad_rows
from gemma_tune.models.towers.media import media_inputs
from gemma_tune.models.towers.towers import seeing
from gemma_tune.processes import in_shares, share
from gemma_tune.progress import progress
from gemma_tune.train.distill import top_k_of_rows

# Up to this vocabulary size all probabilities are compared; of Gemma's own the largest ones, and all others as one
WHOLE, LARGEST = 4096, 256
# Nats per token that are float32's own rounding
_NOTHING = 1e-6


def held_out_targets(base: Any, rows: Sequence[Rendered], tokenizer: Any) -> list[TopK]:
    """The unquantized model's log-probabilities before each trained token of held-out rows.

    Of several processes each has those of its share, as `row_kl` takes them.

    Args:
        base: The model, off its grid.
        rows: Rendered rows.
        tokenizer: Its tokenizer, whose processor prepares their media.
    """
    vocabulary = base.config.get_text_config().vocab_size
    k = vocabulary if vocabulary <= WHOLE else LARGEST
    with evaluating(base):
        shown = progress(share(rows, equal=True), desc="KL: the unquantized model", unit=" rows")
        return [top_k_of_rows(base, [row], k, tokenizer)[0] for row in shown]


def row_kl(base: Any, rows: Sequence[Rendered], targets: Sequence[TopK], tokenizer: Any) -> list[float]:
    """KL(unquantized ‖ model) of each row, summed over its trained tokens, in nats.

    Args:
        base: The model on its grid.
        rows: Rendered rows.
        targets: The unquantized model's log-probabilities, from `held_out_targets`.
        tokenizer: As there.
    """

    def of_share(share: list[Rendered]) -> Iterator[float]:
        for row, wanted in zip(progress(share, desc="KL", unit=" rows"), targets, strict=True):
            inputs = pad_rows(base, [row])
            with seeing(base, media_inputs(tokenizer, [row]), inputs["input_ids"]) as given:
                hidden, _ = trained_states(base, inputs, media=given)
            here = TopK(*(tensor.to(hidden.device) for tensor in wanted))
            yield kl_from_top_k(hidden, head_of(base), here).item()

    with evaluating(base):
        return in_shares(rows, of_share)


def recovered_share(
    plain: Sequence[float],
    trained: Sequence[float],
    unquantized: Sequence[float] | None = None,
    tokens: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[float, float, float]:
    """The share of the loss by plain quantization that training recovered, with its 95 % interval.

    Args:
        plain: Loss or KL of each row on the grid before training, summed over its tokens, in nats.
        trained: The same after training.
        unquantized: The same without a grid; None: 0, as for a KL.
        tokens: Trained tokens of each row. Where they are given, the share is one of perplexities:
            (PPL_plain - PPL_trained) / (PPL_plain - PPL).
        seed: Of the bootstrap over rows (percentile, 2,000 draws).

    Returns:
        The share with the lower and upper end of its interval: 1 where all is recovered, NaN where nothing was lost.
    """
    a, b = np.asarray(plain, dtype=np.float64), np.asarray(trained, dtype=np.float64)
    c = np.zeros_like(a) if unquantized is None else np.asarray(unquantized, dtype=np.float64)
    n = None if tokens is None else np.asarray(tokens, dtype=np.float64)

    def cost(values: Any, rows: Any) -> Any:
        return values[rows].sum(-1) if n is None else np.exp(values[rows].sum(-1) / n[rows].sum(-1))

    def share(rows: Any) -> Any:
        lost = cost(a, rows) - cost(c, rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(lost > 0, (cost(a, rows) - cost(b, rows)) / lost, np.nan)

    every = np.arange(len(a))
    draws = np.random.default_rng(seed).integers(0, len(a), (2000, len(a)))
    shares = share(draws)
    if np.isnan(shares).all():
        return float(share(every)), float("nan"), float("nan")
    low, high = np.nanpercentile(shares, [2.5, 97.5])
    return float(share(every)), float(low), float(high)


def kl_headline(quality: Mapping[str, Any]) -> dict[str, Any] | None:
    """The KL from the unquantized model before and after training; None where rounding has cost nothing."""
    if quality.get("plain_kl", 1.0) < _NOTHING:
        return None
    return {"name": "mean_kl", "before": quality.get("plain_kl"), "after": quality.get("trained_kl")}


def quality_metrics(
    tokens: Sequence[int],
    plain: Sequence[float],
    trained: Sequence[float],
    rows: Sequence[Sequence[dict[str, Any]]] = (),
) -> dict[str, Any]:
    """The KL by plain quantization, the KL that is left after training, and the share that training recovered.

    Args:
        tokens: Trained tokens of each held-out row.
        plain: KL from the unquantized model before training, summed over each row, in nats.
        trained: The same after training.
        rows: Rows of the held-out loss: of the unquantized model, on the grid before training, and after it.

    Returns:
        `plain_kl` and `trained_kl` (nats per token); and where rounding has cost anything, `recovered_kl` with `_low`
        and `_high`, and the same of perplexity.
    """
    if not tokens:
        return {}
    found = {"plain_kl": sum(plain) / sum(tokens), "trained_kl": sum(trained) / sum(tokens)}
    if found["plain_kl"] < _NOTHING:
        return found
    share, low, high = recovered_share(plain, trained)
    found |= {"recovered_kl": share, "recovered_kl_low": low, "recovered_kl_high": high}
    if rows and all(rows):
        losses = [[row["score"] * row["weight"] for row in part] for part in rows]
        weights = [row["weight"] for row in rows[0]]
        share, low, high = recovered_share(losses[1], losses[2], losses[0], weights)
        found |= {"recovered_perplexity": share, "recovered_perplexity_low": low, "recovered_perplexity_high": high}
    return found
