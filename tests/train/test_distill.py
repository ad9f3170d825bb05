"""The teacher: what it gives of rows together and each by itself, live and from the cache; and the rows of a batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.chat import Rendered
from gemma_tune.models.padding import unpad_rows
from gemma_tune.run.paths import ASSETS
from gemma_tune.train.distill import Teacher, top_k_of_rows


def tiny(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=dtype).eval()


def some_rows() -> list[Rendered]:
    rng = torch.Generator().manual_seed(0)
    rows = []
    for n, trained in ((3, 1), (40, 39), (17, 0), (33, 12), (40, 20), (9, 8)):
        ids = torch.randint(10, 1500, (n,), generator=rng).tolist()
        rows.append(Rendered(ids, [-100] * (n - trained) + ids[n - trained :]))
    return rows


def test_rows_together_and_each_by_itself() -> None:
    """Padding changes nothing, whatever a row's length, and how much of it is trained.

    In float64, so that 1e-5 holds of log-probabilities far down, too; in float32 it holds of probabilities.
    """
    model, rows = tiny(torch.float64), some_rows()
    for row, found in zip(rows, top_k_of_rows(model, rows, 64), strict=True):
        (alone,) = top_k_of_rows(model, [row], 64)
        assert found.ids.shape == (row.trained_tokens, 64)
        assert torch.allclose(found.log_probs, alone.log_probs, rtol=0, atol=1e-5)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        reference = logits.log_softmax(-1)[torch.tensor(row.labels[1:]) != -100]
        assert torch.allclose(found.log_probs.double(), reference.gather(-1, found.ids), rtol=0, atol=1e-5)
        assert torch.allclose(found.log_probs.double(), reference.topk(64).values, rtol=0, atol=1e-5)
    model.float()
    for row, found in zip(rows, top_k_of_rows(model, rows, 64), strict=True):
        (alone,) = top_k_of_rows(model, [row], 64)
        assert torch.allclose(found.log_probs.exp(), alone.log_probs.exp(), rtol=0, atol=1e-5)


def test_the_teacher_as_it_was(tmp_path: Path) -> None:
    """A live one and one whose targets are on disk give what the model gave, whatever is trained afterwards."""
    model, tokenizer, rows = tiny(), AutoTokenizer.from_pretrained(ASSETS / "tiny"), some_rows()
    before = copy.deepcopy(model)
    live = Teacher(model, tokenizer, 8, live=True)
    kept = Teacher(model, tokenizer, 8, cache=tmp_path / "t")
    model.train()
    for teacher in (live, kept):
        teacher.prepare(rows)
    assert model.training
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    for row in rows:
        (wanted,) = top_k_of_rows(before, [row], 8)
        assert torch.equal(live(row).ids, wanted.ids) and torch.equal(live(row).log_probs, wanted.log_probs)
        assert torch.allclose(kept(row).log_probs, wanted.log_probs, atol=2e-2)
        assert not live(row).log_probs.requires_grad
    with pytest.raises(KeyError):
        kept(Rendered([9, 9], [-100, 9]))


def test_rows_of_a_batch() -> None:
    """Padded rows without their padding, and packed ones each by itself."""
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])
    labels = torch.tensor([[-100, 2, 3, -100], [-100, -100, 6, 7]])
    padded = {"input_ids": ids, "labels": labels, "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])}
    assert unpad_rows(padded, "input_ids") == [[1, 2, 3], [4, 5, 6, 7]]
    assert unpad_rows(padded, "labels") == [[-100, 2, 3], [-100, -100, 6, 7]]
    assert unpad_rows({"input_ids": ids}, "input_ids") == ids.tolist()
    packed = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5, 6, 7]]),
        "labels": torch.tensor([[-100, 2, 3, -100, -100, 6, 7]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
    }
    assert unpad_rows(packed, "input_ids") == [[1, 2, 3], [4, 5, 6, 7]]
    assert unpad_rows(packed, "labels") == [[-100, 2, 3], [-100, -100, 6, 7]]
