"""The unquantised model's probabilities: the loss against them, and the cache on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from gemma_tune import UserError
from gemma_tune.chat import Rendered
from gemma_tune.quant.metrics import recovered_share
from gemma_tune.quant.trainer import rows_in, targets_of, targets_of_rows
from gemma_tune.run.paths import ASSETS
from gemma_tune.train.distill import Targets, TeacherCache, divergence, fill_in_batches, summed_divergence, summed_loss

ROWS = [Rendered(list(range(n)), [-100, *range(1, n)]) for n in (4, 7, 5)]


def made(rows: Sequence[Rendered]) -> list[Targets]:
    return [one(row) for row in rows]


def one(row: Rendered) -> Targets:
    rng = torch.Generator().manual_seed(len(row.input_ids))
    found = torch.randn(row.trained_tokens, 50, generator=rng).log_softmax(-1).topk(8)
    return Targets(found.indices, found.values)


def test_divergence_against_torch() -> None:
    """All tokens kept: torch's own KL. Some kept: at most that, and the KL of the merged distribution."""
    rng = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, 50, generator=rng) * 3 for _ in range(2))
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    whole = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    every = log_p.topk(50)
    assert torch.allclose(divergence(q, Targets(every.indices, every.values)), whole, atol=1e-5)
    some = log_p.topk(5)
    kept, rest = log_q.gather(-1, some.indices), 1 - some.values.exp().sum(-1)
    rest_q = 1 - kept.exp().sum(-1)
    merged = (some.values.exp() * (some.values - kept)).sum(-1) + rest * (rest / rest_q).log()
    found = divergence(q, Targets(some.indices, some.values))
    assert torch.allclose(found, merged, atol=1e-5) and (found <= whole + 1e-5).all()


def test_sums_over_many_positions() -> None:
    """In parts and at once, with the same gradients."""
    rng = torch.Generator().manual_seed(0)
    head = torch.randn(50, 16, generator=rng, requires_grad=True)
    hidden = torch.randn(700, 16, generator=rng, requires_grad=True)
    labels = torch.randint(0, 50, (700,), generator=rng)
    top = torch.randn(700, 50, generator=rng).log_softmax(-1).topk(8)
    targets = Targets(top.indices, top.values)
    in_parts = summed_divergence(hidden, lambda h: h @ head.T, targets) + summed_loss(
        hidden, lambda h: h @ head.T, labels
    )
    at_once = divergence(hidden @ head.T, targets).sum() + functional.cross_entropy(
        hidden @ head.T, labels, reduction="sum"
    )
    assert in_parts.item() == pytest.approx(at_once.item(), rel=1e-5)
    a, b = (torch.autograd.grad(loss, (hidden, head)) for loss in (in_parts, at_once))
    assert all(torch.allclose(x, y, rtol=1e-4, atol=1e-4) for x, y in zip(a, b, strict=True))


def test_the_cache(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "t", 8, "m", "v")
    assert fill_in_batches(cache, ROWS[:2], made) == 2 and fill_in_batches(cache, ROWS, made) == 1
    again = TeacherCache(tmp_path / "t", 8, "m", "v")
    assert not again.missing(ROWS)
    for row in ROWS:
        wanted, found = one(row), again.get(row.input_ids)
        assert torch.equal(found.ids, wanted.ids)
        assert torch.allclose(found.log_probs, wanted.log_probs, atol=5e-3)
    size = sum((tmp_path / "t" / n).stat().st_size for n in ("ids.bin", "log_probs.bin"))
    assert size == sum(r.trained_tokens for r in ROWS) * again.bytes_per_token
    with pytest.raises(KeyError):
        again.get([9, 9, 9])


def test_rows_together_and_each_by_itself() -> None:
    """Padding changes nothing, whatever a row's length, and how much of it is trained.

    In float64, so that 1e-5 holds of log-probabilities far down, too; in float32 it holds of probabilities.
    """
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float64).eval()
    rng = torch.Generator().manual_seed(0)
    rows = []
    for n, trained in ((3, 1), (40, 39), (17, 0), (33, 12), (40, 20), (9, 8)):
        ids = torch.randint(10, 1500, (n,), generator=rng).tolist()
        rows.append(Rendered(ids, [-100] * (n - trained) + ids[n - trained :]))
    for row, found in zip(rows, targets_of_rows(model, rows, 64), strict=True):
        alone = targets_of(model, row, 64)
        assert found.ids.shape == (row.trained_tokens, 64)
        assert torch.allclose(found.log_probs, alone.log_probs, rtol=0, atol=1e-5)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        reference = logits.log_softmax(-1)[torch.tensor(row.labels[1:]) != -100]
        assert torch.allclose(found.log_probs.double(), reference.gather(-1, found.ids), rtol=0, atol=1e-5)
        assert torch.allclose(found.log_probs.double(), reference.topk(64).values, rtol=0, atol=1e-5)
    model.float()
    for row, found in zip(rows, targets_of_rows(model, rows, 64), strict=True):
        assert torch.allclose(found.log_probs.exp(), targets_of(model, row, 64).log_probs.exp(), rtol=0, atol=1e-5)


def test_batches_of_rows_of_like_length(tmp_path: Path) -> None:
    """The longest ones first, as many as a batch holds, each once; a row longer than a batch goes alone."""
    lengths = [5, 5000, 1000, 30, 1100, 1200, 5, 1300]
    rows = [Rendered([i] * n, [-100] * (n - 1) + [i]) for i, n in enumerate(lengths)]
    seen: list[list[int]] = []

    def targets(batch: Sequence[Rendered]) -> list[Targets]:
        seen.append([len(row.input_ids) for row in batch])
        return made(batch)

    cache = TeacherCache(tmp_path / "t", 8, "m", "v")
    assert fill_in_batches(cache, rows, targets) == len(rows)
    assert seen == [[5000], [1300, 1200, 1100], [1000, 30, 5, 5]]
    assert not cache.missing(rows)


def test_64_probabilities_take_at_most_400_bytes(tmp_path: Path) -> None:
    assert TeacherCache(tmp_path / "t", 64, "m", "v").bytes_per_token <= 400


def test_a_kill_while_writing(tmp_path: Path) -> None:
    """What stands behind the last whole line of the index is written again."""
    cache = TeacherCache(tmp_path / "t", 8, "m", "v")
    fill_in_batches(cache, ROWS[:2], made)
    for name in ("ids.bin", "log_probs.bin", "index.jsonl"):
        with (tmp_path / "t" / name).open("ab") as f:
            f.write(b"[half")
    again = TeacherCache(tmp_path / "t", 8, "m", "v")
    assert fill_in_batches(again, ROWS, made) == 1
    for row in ROWS:
        assert torch.equal(again.get(row.input_ids).ids, one(row).ids)


@pytest.mark.parametrize(
    ("k", "model", "tokenizer", "message"),
    [
        (9, "m", "v", "another quant.teacher_top_k"),
        (8, "x", "v", "of another model"),
        (8, "m", "x", "another tokenizer"),
    ],
)
def test_a_cache_of_something_else(tmp_path: Path, k: int, model: str, tokenizer: str, message: str) -> None:
    TeacherCache(tmp_path / "t", 8, "m", "v")
    with pytest.raises(UserError, match=message):
        TeacherCache(tmp_path / "t", k, model, tokenizer)


def test_a_cache_that_was_cut(tmp_path: Path) -> None:
    fill_in_batches(TeacherCache(tmp_path / "t", 8, "m", "v"), ROWS, made)
    with (tmp_path / "t" / "ids.bin").open("r+b") as f:
        f.truncate(10)
    with pytest.raises(UserError, match=r"ids\.bin is cut off"):
        TeacherCache(tmp_path / "t", 8, "m", "v")


def test_rows_of_a_batch() -> None:
    """Padded rows without their padding, and packed ones each by itself."""
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])
    labels = torch.tensor([[-100, 2, 3, -100], [-100, -100, 6, 7]])
    padded = {"input_ids": ids, "labels": labels, "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])}
    assert [r.input_ids for r in rows_in(padded)] == [[1, 2, 3], [4, 5, 6, 7]]
    packed = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5, 6, 7]]),
        "labels": torch.tensor([[-100, 2, 3, -100, -100, 6, 7]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
    }
    assert [(r.input_ids, r.labels) for r in rows_in(packed)] == [
        ([1, 2, 3], [-100, 2, 3]),
        ([4, 5, 6, 7], [-100, -100, 6, 7]),
    ]


def test_what_training_takes_back() -> None:
    share, low, high = recovered_share([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert share == pytest.approx(0.5) and low == pytest.approx(0.5) and high == pytest.approx(0.5)
    share, low, high = recovered_share([2.0, 4.0, 6.0, 1.0], [1.0, 1.0, 5.0, 1.0])
    assert share == pytest.approx(5 / 13) and low < share < high
    nats, tokens = ([3.0, 3.0], [2.5, 2.5], [2.0, 2.0]), [2, 2]
    e = [torch.tensor(x[0] / 2).exp().item() for x in nats]
    assert recovered_share(*nats, tokens)[0] == pytest.approx((e[0] - e[1]) / (e[0] - e[2]))
    assert str(recovered_share([1.0], [1.0], [1.0])[0]) == "nan"
