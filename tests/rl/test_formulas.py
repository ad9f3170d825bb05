"""Advantages and loss of one batch against the papers' formulas, worked out apart from plain Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rl_models import made
from transformers import AutoModelForCausalLM

from gemma_tune.rl.trainer import RewardedTrainer
from gemma_tune.run.paths import ASSETS

WORDS = ["train.per_device_train_batch_size=16", "train.num_generations=8", "train.max_completion_length=12"]
VARIANTS, FAST = ("grpo", "dr_grpo", "dapo", "gspo", "rloo"), ("grpo", "rloo")
Arrays = dict[str, Any]


def one_batch(recipe: str, folder: Path, *words: str) -> tuple[RewardedTrainer, Arrays, np.ndarray]:
    """A trainer, what it generated, and the rewards, [prompts, completions]."""
    samples: list[Any] = []
    trainer = made(recipe, folder, *WORDS, "train.temperature=1.5", *words, samples=samples)
    rows = next(iter(trainer.get_train_dataloader()))[:16]  # of several updates they are all the same
    generated = trainer._generate_and_score_completions(rows)
    return trainer, generated, np.array([row["reward"] for row in samples]).reshape(2, 8)


def log_probs(generated: Arrays, temperature: float) -> np.ndarray:
    """Of each token of the completions, [N, C], by plain Transformers."""
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float64)
    ids = torch.cat([generated["prompt_ids"], generated["completion_ids"]], 1)
    mask = torch.cat([generated["prompt_mask"], generated["completion_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits / temperature
    n = generated["completion_ids"].shape[1]
    found = logits[:, -n - 1 : -1].log_softmax(-1).gather(2, generated["completion_ids"][..., None])[..., 0]
    return found.numpy()


def advantages_of(recipe: str, rewards: np.ndarray) -> np.ndarray:
    """As the papers have them, [N]."""
    if recipe == "rloo":
        others = (rewards.sum(1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
        return (rewards - others).reshape(-1)
    centred = rewards - rewards.mean(1, keepdims=True)
    if recipe != "dr_grpo":
        centred = centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    return centred.reshape(-1)


@pytest.mark.parametrize("recipe", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_advantages(recipe: str, tmp_path: Path) -> None:
    _, generated, rewards = one_batch(recipe, tmp_path / "run")
    assert rewards.std(1).min() > 0
    np.testing.assert_allclose(generated["advantages"].numpy(), advantages_of(recipe, rewards), atol=1e-5)


def loss_of(
    recipe: str, new: np.ndarray, old: np.ndarray, advantages: np.ndarray, mask: np.ndarray, longest: int
) -> float:
    """The papers' losses; `new` and `old` [N, C], `mask` [N, C], `advantages` [N]."""
    low, high = {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}.get(recipe, (0.2, 0.2))
    lengths = mask.sum(1)
    if recipe == "rloo":  # a completion is one action
        ratio = np.exp(((new - old) * mask).sum(1))
        return float(-np.minimum(ratio * advantages, ratio.clip(1 - low, 1 + high) * advantages).mean())
    log_ratio = new - old
    if recipe == "gspo":
        log_ratio = np.repeat((log_ratio * mask).sum(1, keepdims=True) / lengths[:, None], mask.shape[1], 1)
    ratio, a = np.exp(log_ratio), advantages[:, None]
    each = np.minimum(ratio * a, ratio.clip(1 - low, 1 + high) * a) * mask
    if recipe == "dapo":
        return float(-each.sum() / mask.sum())
    if recipe == "dr_grpo":
        return float(-each.sum() / (len(each) * longest))
    return float(-(each.sum(1) / lengths).mean())


@pytest.mark.parametrize("recipe", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_loss(recipe: str, tmp_path: Path) -> None:
    """With ratios far from 1 on both sides, so that the clipping counts."""
    trainer, generated, rewards = one_batch(recipe, tmp_path / "run", "train.steps_per_generation=1")
    mask = generated["completion_mask"].numpy()
    new = log_probs(generated, temperature=1.5)
    old = new + np.random.default_rng(0).normal(0, 0.05 if recipe == "gspo" else 0.3, new.shape)
    inputs = dict(generated)
    if recipe == "rloo":
        inputs["old_logps"] = torch.tensor((old * mask).sum(1), dtype=torch.float32)
    else:
        inputs["old_per_token_logps"] = torch.tensor(old, dtype=torch.float32)
    wanted = loss_of(recipe, new, old, advantages_of(recipe, rewards), mask, longest=12)
    assert abs(wanted) > 1e-4
    assert trainer._compute_loss(trainer.model, inputs).item() == pytest.approx(wanted, rel=2e-3, abs=2e-5)


def test_the_kl_to_the_model_as_it_began(tmp_path: Path) -> None:
    """GRPO's estimator of it (Schulman's k3), with its weight."""
    words = ["train.beta=0.04"]
    trainer, generated, rewards = one_batch("grpo", tmp_path / "run", *words)
    mask, new = generated["completion_mask"].numpy(), log_probs(generated, temperature=1.5)
    reference = new + np.random.default_rng(1).normal(0, 0.3, new.shape)
    inputs = {**generated, "ref_per_token_logps": torch.tensor(reference, dtype=torch.float32)}
    kl = (np.exp(reference - new) - (reference - new) - 1) * mask
    wanted = (
        loss_of("grpo", new, new, advantages_of("grpo", rewards), mask, 12) + 0.04 * (kl.sum(1) / mask.sum(1)).mean()
    )
    assert trainer._compute_loss(trainer.model, inputs).item() == pytest.approx(wanted, rel=2e-3)
    # At the start both are the same model
    np.testing.assert_allclose(generated["ref_per_token_logps"].numpy() * mask, new * mask, atol=2e-3)


def test_completions_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    words = ["train.max_completion_length=4", "train.mask_truncated_completions=true"]
    trainer, generated, _ = one_batch("grpo", tmp_path / "run", *words)
    stops = torch.isin(generated["completion_ids"], torch.tensor(trainer.eos_token_ids)).any(1)
    assert not stops.all()
    assert torch.equal(generated["completion_mask"].any(1), stops)
