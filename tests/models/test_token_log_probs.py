"""The head in tiles against the same in float64, and against TRL's head in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl.kernels import ChunkedLogProbFunction

from gemma_tune.models.kernels.tiled_head import OUTPUTS, HeadOptions, _highest, token_log_probs

POSITIONS, WIDTH, VOCABULARY = 600, 32, 3001  # three tiles, and blocks of which the last one is shorter


def reference(hidden: Any, weight: Any, targets: Any, o: HeadOptions) -> dict[str, torch.Tensor]:
    logits = hidden @ weight.T
    if o.softcap is not None:
        logits = torch.tanh(logits / o.softcap) * o.softcap
    logits = logits / o.temperature
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    return {
        "log_probs": log_p.gather(1, targets[:, None])[:, 0],
        "entropy": -(p * log_p).sum(1),
        "is_top1": logits.argmax(1) == targets,
        "mean_logits": logits.mean(1),
        "log_sum_sq_probs": p.square().sum(1).log(),
    }


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=draw) * 2
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw) / 2
    targets = torch.randint(0, VOCABULARY, (POSITIONS,), generator=draw)
    targets[::7] = (hidden @ weight.T).argmax(1)[::7]  # near a probability of 1, where gradients cancel
    return hidden, weight, targets


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize(("softcap", "temperature"), [(None, 1.0), (5.0, 0.7)])
def test_float64(trained: bool, entropy: bool, softcap: float | None, temperature: float) -> None:
    o = HeadOptions(softcap, temperature, OUTPUTS, entropy)
    hidden, weight, targets = drawn()
    of_log_probs, of_entropy = torch.randn(2, POSITIONS, generator=torch.Generator().manual_seed(1))
    results = []
    for dtype, compute in ((torch.float32, token_log_probs), (torch.float64, reference)):
        h = hidden.to(dtype, copy=True).requires_grad_()
        w = weight.to(dtype, copy=True).requires_grad_(trained)
        found = compute(h, w, targets, o)
        loss = (found["log_probs"] * of_log_probs).sum()
        (loss + (found["entropy"] * of_entropy).sum() if entropy else loss).backward()
        results.append((found, h.grad, w.grad))
    (ours, h, w), (theirs, true_h, true_w) = results
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name].to(values.dtype), values, rtol=1e-5, atol=1e-5)
    for gradient, true in ((h, true_h), (w, true_w))[: 1 + trained]:
        assert (gradient.double() - true).norm() / true.norm() < 3e-6
        assert (gradient.double() - true).abs().max() < 3e-6 * true.abs().max() + 1e-5
    assert ours["entropy"].requires_grad == (entropy or trained)


def test_bfloat16_is_as_exact_as_trl_s() -> None:
    hidden, weight, targets = (x.bfloat16() if x.is_floating_point() else x for x in drawn())
    weight, targets = weight / 4, torch.arange(POSITIONS)
    true = hidden.float().requires_grad_()
    log_probs = reference(true, weight.float(), targets, HeadOptions())["log_probs"]
    log_probs.sum().backward()

    def error(compute: Any) -> tuple[float, float]:
        h = hidden.clone().requires_grad_()
        found = compute(h)
        found.sum().backward()
        return float((found - log_probs).abs().max()), float((h.grad - true.grad).norm() / true.grad.norm())

    ours = error(lambda h: token_log_probs(h, weight, targets, HeadOptions())["log_probs"])
    theirs = error(lambda h: ChunkedLogProbFunction.apply(h, weight, None, targets, 1.0, 1024, None, 1.0, ())[0])
    assert ours[0] <= 1.01 * theirs[0] + 1e-6
    assert ours[1] < max(2 * theirs[1], 5e-3)


def test_mixed_precision_rounds_products_alone() -> None:
    hidden, weight, targets = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        found = token_log_probs(hidden, weight, targets, HeadOptions(outputs=OUTPUTS))
    wanted = token_log_probs(hidden.bfloat16(), weight.bfloat16(), targets, HeadOptions(outputs=OUTPUTS))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_no_position_and_no_gradient_wanted() -> None:
    hidden, weight, targets = drawn()
    hidden.requires_grad_()
    found = token_log_probs(hidden[:0], weight, targets[:0], HeadOptions(outputs=("entropy",)))
    found["log_probs"].sum().backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    with torch.no_grad():
        assert not token_log_probs(hidden, weight, targets, HeadOptions())["log_probs"].requires_grad


@pytest.mark.parametrize("vocab", [1, 900, 1024, 2500])
def test_the_highest_logit_and_the_lowest_id_that_has_it(vocab: int) -> None:
    tile = torch.randint(0, 3, (200, vocab), generator=torch.Generator().manual_seed(0)).bfloat16()
    tile[:100, : vocab // 2] = 0  # highest ones in the last block
    most, first = _highest(tile)
    assert torch.equal(most[:, 0], tile.max(1).values) and torch.equal(first, tile.argmax(1))
