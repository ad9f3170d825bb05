"""The head over trained tokens: KL and log-likelihood against torch's own, at once and in chunks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gemma_tune.models.head import TopK, bucketed_kl, kl_from_top_k, nll, top_k, trained_positions


def random_top_k(n: int, vocabulary: int, k: int) -> TopK:
    logits = torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(1)) * 3
    return TopK(*reversed(logits.log_softmax(-1).topk(k)))


def in_float64(reference: TopK, logits: torch.Tensor) -> torch.Tensor:
    """KL of each position by the formula: the kept tokens, and what is missing to 1 as one more."""
    log_q = logits.double().log_softmax(-1).gather(-1, reference.ids)
    p, q = reference.log_probs.double().exp(), log_q.exp()
    buckets = [torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1).clamp_min(1e-300) for x in (p, q)]
    return (buckets[0] * (buckets[0] / buckets[1]).log()).sum(-1)


def test_kl_against_torch() -> None:
    """All tokens kept: torch's own KL. Some kept: less than that, and the KL of the merged distribution."""
    rng = torch.Generator().manual_seed(0)
    log_p, log_q = ((torch.randn(6, 50, generator=rng) * 3).log_softmax(-1) for _ in range(2))
    whole = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    assert torch.allclose(bucketed_kl(log_p, log_q, whole=True), whole, atol=1e-5)
    some = log_p.topk(5)
    found = bucketed_kl(some.values, log_q.gather(-1, some.indices))
    assert torch.allclose(found.double(), in_float64(TopK(some.indices, some.values), log_q), atol=1e-5)
    assert (found <= whole + 1e-5).all()


def test_a_token_that_never_comes() -> None:
    """p = 0 counts nothing, whatever q is; q = 0 where p isn't makes the divergence infinite."""
    p, q = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert bucketed_kl(p, q, whole=True).item() == pytest.approx(0.5 * torch.log(torch.tensor(2.0)).item())
    assert bucketed_kl(q, p, whole=True).item() == float("inf")


def test_the_rest_below_a_limit_counts_nothing() -> None:
    log_p, log_q = torch.tensor([[0.7, 0.2999]]).log(), torch.tensor([[0.6, 0.3]]).log()
    assert bucketed_kl(log_p, log_q, least_rest=1e-3) == bucketed_kl(log_p, log_q, whole=True)
    assert bucketed_kl(log_p, log_q) != bucketed_kl(log_p, log_q, whole=True)


@pytest.mark.parametrize("k", [8, 50])
def test_chunks_and_all_at_once(k: int) -> None:
    """700 positions are three chunks: against the formula in float64, with the same gradients."""
    rng = torch.Generator().manual_seed(0)
    head = torch.randn(50, 16, generator=rng, requires_grad=True)
    hidden = torch.randn(700, 16, generator=rng, requires_grad=True)
    labels, reference = torch.randint(0, 50, (700,), generator=rng), random_top_k(700, 50, k)
    logits = hidden @ head.T
    for in_chunks, at_once in (
        (kl_from_top_k(hidden, lambda h: h @ head.T, reference), in_float64(reference, logits).sum()),
        (
            nll(hidden, lambda h: h @ head.T, labels, reduction="sum"),
            -logits.double().log_softmax(-1).gather(1, labels[:, None]).sum(),
        ),
    ):
        assert in_chunks.item() == pytest.approx(at_once.item(), rel=1e-5)
        a, b = (torch.autograd.grad(loss, (hidden, head), retain_graph=True) for loss in (in_chunks, at_once))
        assert all(torch.allclose(x, y, rtol=1e-4, atol=1e-4) for x, y in zip(a, b, strict=True))
    of_each = nll(hidden, lambda h: h @ head.T, labels)
    assert torch.equal(of_each, functional.cross_entropy(logits, labels, reduction="none"))
    best = logits.log_softmax(-1).topk(5)
    found = top_k(hidden, lambda h: h @ head.T, 5)
    assert torch.equal(found.ids, best.indices) and torch.allclose(found.log_probs, best.values, atol=1e-5)
    assert not found.log_probs.requires_grad


def test_no_trained_token() -> None:
    labels = torch.full((2, 5), -100)
    trained, following = trained_positions(labels)
    assert trained.shape == (2, 4) and not trained.any() and following.shape == (0,)
    hidden = torch.zeros(0, 3, requires_grad=True)
    assert nll(hidden, lambda h: h, following).shape == (0,)
    assert nll(hidden, lambda h: h, following, reduction="sum").item() == 0


def test_trained_positions() -> None:
    """A position counts where the token after it is trained; the first token has none before it."""
    trained, following = trained_positions(torch.tensor([[7, -100, 8, 9], [-100, 5, -100, -100]]))
    assert trained.tolist() == [[False, True, True], [True, False, False]]
    assert following.tolist() == [8, 9, 5]
