"""Compares an engine's top-k log-probabilities with the trained model's, position by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from gemma_tune.models.head import bucketed_kl

# What engines that sum probabilities in float32 are off by, times the root of the vocabulary's size. Measured with
# llama.cpp: 1.7e-5 of 1,536 tokens, 5e-4 of 262,144.
_SUM_ERROR = 1e-6


@dataclass(frozen=True)
class EngineAgreement:
    """The result of a comparison.

    Attributes:
        positions: Number of positions compared.
        mean_kl: KL(trained model ‖ engine), nats a position.
        same: Positions with the same top-1 token.
        close: Positions with another top-1 token, where the trained model's top two are less than the margin apart.
    """

    positions: int
    mean_kl: float
    same: int
    close: int

    @property
    def top1(self) -> float:
        """Share of positions with the same best token."""
        return self.same / self.positions

    @property
    def apart(self) -> int:
        """Positions with another best token beyond the margin."""
        return self.positions - self.same - self.close


def engine_kl(
    reference: torch.Tensor, ids: torch.Tensor, found: torch.Tensor, total: torch.Tensor | None = None
) -> torch.Tensor:
    """KL(reference ‖ engine) in nats at each position, over the tokens given and one bucket for all others.

    The engine's probabilities may all be too large or too small by one factor, because it sums them in float32. The
    factor that fits best, within the error of such a sum, is taken out first.

    Args:
        reference: Logits or log-probabilities of all tokens, [T, V].
        ids: The engine's best tokens, [T, K].
        found: Their log-probabilities, [T, K].
        total: `log_total(reference)`, where it is known.

    Returns:
        float64, [T]; at most the KL over all tokens.
    """
    total = log_total(reference) if total is None else total
    log_p, log_q = reference.gather(-1, ids).double() - total, found.double()
    error = _SUM_ERROR * reference.shape[-1] ** 0.5
    factor = (log_p.exp().sum(-1) / log_q.exp().sum(-1)).clamp(1 - error, 1 + error)
    log_q = log_q + factor.log().unsqueeze(-1)
    # Probabilities whose sum is above 1 would look as if they cost less than nothing
    above_one = (log_q.exp().sum(-1) - 1).clamp(min=0)
    return bucketed_kl(log_p, log_q) + above_one


def log_total(reference: torch.Tensor) -> torch.Tensor:
    """The logarithm of the sum of all probabilities before scaling, float64, [T, 1]."""
    # float64 of a few positions at a time: of all it would be twice the memory of the logits
    return torch.cat([part.double().logsumexp(-1, keepdim=True) for part in reference.split(2)])


def best_tokens(reference: torch.Tensor, best: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the best token is the same, and whether it is another one by less than the margin.

    Args:
        reference: Logits or log-probabilities, [T, V].
        best: The engine's best token, [T].
        margin: Nats between the trained model's two best, below which either counts.

    Returns:
        Two bool tensors, [T]; no position is in both.
    """
    (first, second), tokens = reference.topk(2, dim=-1).values.unbind(-1), reference.argmax(-1)
    same = tokens == best
    return same, ~same & (first - second < margin)


def measure_agreement(
    parts: Iterable[tuple[torch.Tensor, Sequence[tuple[torch.Tensor, torch.Tensor]]]], margin: float = 1e-3
) -> list[EngineAgreement]:
    """Compares engines with the trained model.

    Args:
        parts: Some positions at a time: the trained model's logits or log-probabilities, [T, V], and of each engine
            its best tokens and their log-probabilities, [T, K].
        margin: See `best_tokens`.

    Returns:
        One agreement for each engine.
    """
    totals: list[list[float]] = []
    for reference, engines in parts:
        totals = totals or [[0, 0.0, 0, 0] for _ in engines]
        all_tokens = log_total(reference)
        for total, (ids, found) in zip(totals, engines, strict=True):
            best = ids.gather(-1, found.argmax(-1, keepdim=True)).squeeze(-1)
            equal, near = best_tokens(reference, best, margin)
            kl = engine_kl(reference, ids, found, all_tokens).sum().item()
            for i, value in enumerate((len(reference), kl, int(equal.sum()), int(near.sum()))):
                total[i] += value
        del reference  # before the next ones are computed
    return [EngineAgreement(int(n), kl / n, int(same), int(close)) for n, kl, same, close in totals]
