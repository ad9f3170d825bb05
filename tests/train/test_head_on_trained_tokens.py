"""The head for the trained tokens alone gives TRL's loss, gradients and metrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from gemma_tune.run.paths import ASSETS
from gemma_tune.train.head_on_trained_tokens import head_on_trained_tokens


@pytest.fixture(scope="module", params=["full", "lora"])
def model(request: pytest.FixtureRequest) -> Any:
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float32)
    if request.param == "lora":
        base = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    add_fused_lm_head(base.get_base_model() if request.param == "lora" else base, outputs=("entropy", "is_top1"))
    return base


def batch(trained: list[range]) -> dict[str, Any]:
    ids = torch.randint(10, 1500, (len(trained), 40), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    for row, places in enumerate(trained):
        labels[row, list(places)] = ids[row, list(places)]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def outcome(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    model.zero_grad()
    found = model(**inputs, fused_lm_head=True, num_items_in_batch=17)
    found.loss.backward()
    return found, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "trained",
    [
        [range(30, 40), range(12, 19)],
        [range(0, 40), range(0)],  # one row whole (its first token has nothing before it), one without a trained token
    ],
)
def test_loss_gradients_and_metrics(model: Any, trained: list[range]) -> None:
    inputs = batch(trained)
    whole, gradients = outcome(model, inputs)
    with head_on_trained_tokens(model, inputs) as kept:
        alone, same = outcome(model, kept)
    assert alone.log_probs.numel() == int(whole.label_mask.sum()) < whole.log_probs.numel()
    torch.testing.assert_close(alone.loss, whole.loss, rtol=1e-6, atol=0)
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        a, b = getattr(alone, name).sum(), getattr(whole, name).sum()
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-6)


def test_nothing_trained_and_nothing_left_behind(model: Any) -> None:
    inputs = batch([range(0), range(0)])
    with head_on_trained_tokens(model, inputs) as kept:
        assert kept is inputs
    before = outcome(model, batch([range(30, 40)]))[0].log_probs.shape
    with pytest.raises(KeyError), head_on_trained_tokens(model, batch([range(30, 40)])):
        raise KeyError
    assert outcome(model, batch([range(30, 40)]))[0].log_probs.shape == before
