"""The update with rewards: rows without an advantage are left out, and rows of a prompt stand together."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_models import made
from slow import slow_after

from gemma_tune.models.contexts import training_attention
from gemma_tune.models.kernels.training_layers import training_layers
from gemma_tune.rl.prompts import PromptTrainer
from gemma_tune.rl.updates import UpdateTrainer, _Computed, by_prompt, with_ratio_1

WORDS = ["train.per_device_train_batch_size=8", "train.num_generations=4", "train.max_completion_length=8"]
ONLY_OTHERS = "entropy"  # the logged figure that is of computed rows alone
Outcome = tuple[float, dict[str, torch.Tensor], dict[str, list[float]], int]


def generated(trainer: Any) -> dict[str, Any]:
    """What one generation gives, with ratios that aren't 1."""
    torch.manual_seed(5)
    found: dict[str, Any] = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    for name in ("old_per_token_logps", "old_logps"):
        if name in found:
            found[name] = found[name] + 0.3 * torch.randn(found[name].shape)
    return found


def updated(trainer: Any, inputs: dict[str, Any], skip: bool) -> Outcome:
    """Loss, gradients, logged figures, and how many tokens went through the layers."""
    trainer._skip_zero_advantages = skip
    trainer._metrics["train"].clear()
    trainer.model.zero_grad()
    tokens: list[int] = []
    watch = trainer.model.base_model.layers[0].register_forward_pre_hook(
        lambda module, args: tokens.append(args[0].shape[:-1].numel())
    )
    with training_attention(trainer.model, None):
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
    watch.remove()
    grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad and p.grad is not None}
    return loss.item(), grads, {n: list(x) for n, x in trainer._metrics["train"].items()}, sum(tokens)


def hold_equal(ours: Outcome, plain: Outcome) -> None:
    assert ours[0] == pytest.approx(plain[0], rel=1e-5, abs=1e-7)
    assert ours[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        assert (ours[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
    assert {*plain[2]} - {*ours[2]} <= {ONLY_OTHERS}
    for name in ours[2].keys() - {ONLY_OTHERS}:
        assert ours[2][name] == pytest.approx(plain[2][name], abs=1e-6), name


@pytest.mark.parametrize("recipe", slow_after(2, ["grpo", "rloo", "dapo", "dr_grpo", "gspo"]))
def test_rows_without_advantage_are_left_out(recipe: str, tmp_path: Path) -> None:
    """Two of eight, all, and none, with ratios that are clipped."""
    trainer = made(recipe, tmp_path / "run", *WORDS, "train.num_iterations=2")
    inputs = generated(trainer)
    inputs["advantages"][[1, 4]] = 0
    ours, plain = (updated(trainer, inputs, skip) for skip in (True, False))
    hold_equal(ours, plain)
    assert ours[3] < plain[3]
    others = inputs["completion_mask"] * (inputs["advantages"] != 0)[:, None]
    some = updated(trainer, inputs | {"completion_mask": others}, False)
    assert ours[2][ONLY_OTHERS] == pytest.approx(some[2][ONLY_OTHERS], rel=1e-5)
    nothing = inputs | {"advantages": torch.zeros_like(inputs["advantages"])}
    ours, plain = (updated(trainer, nothing, skip) for skip in (True, False))
    hold_equal(ours, plain)
    assert ours[3] <= 2 and ours[1] and not any(gradient.any() for gradient in ours[1].values())
    assert ONLY_OTHERS not in ours[2]
    every = inputs | {"advantages": torch.linspace(-1, 1, len(inputs["advantages"]))}
    ours, plain = (updated(trainer, every, skip) for skip in (True, False))
    assert (ours[0], *ours[2:]) == (plain[0], *plain[2:])


def test_ratios_of_rows_that_are_left_out() -> None:
    """Of long completions e to their log-likelihood is 0, and infinite the other way round."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    old = torch.tensor([-900.0, -3.0, 0.0])
    torch.testing.assert_close((with_ratio_1({"completion_mask": mask, "old_logps": old}) * mask).sum(1), old)


def test_a_row_that_is_there_for_its_media_has_no_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have rows with an advantage, and the mean is over theirs."""
    name = "_get_per_token_logps_and_entropies"
    monkeypatch.setattr(PromptTrainer, "_has_media", True)
    monkeypatch.setattr(PromptTrainer, name, lambda self, model, ids, *_: (ids + 1.0, ids + 1.0, None))
    trainer: Any = object.__new__(UpdateTrainer)
    trainer._rows, trainer._computed = [7, 7], _Computed(torch.arange(0), torch.zeros(2, 3))
    log_probs, entropies, _ = getattr(trainer, name)(None, torch.zeros(2, 3), torch.ones(2, 3), 3)
    assert log_probs.tolist() == [[1.0] * 3, [0.0] * 3] and not entropies.any()


def test_rows_with_another_gradient_stay(tmp_path: Path) -> None:
    """GRPO's KL is part of the loss, that of RLOO of the rewards."""
    trainer = made("grpo", tmp_path / "run", *WORDS, "train.beta=0.1", "adapter=lora")
    assert not trainer._can_skip()
    trainer.beta = 0.0
    assert trainer._can_skip()
    for name, value in {"top_entropy_quantile": 0.5, "_entropy_bonus_enabled": True, "aux_loss_enabled": True}.items():
        own = getattr(trainer, name)
        setattr(trainer, name, value)
        assert not trainer._can_skip()
        setattr(trainer, name, own)
    trainer.loss_type = "vespo"
    assert not trainer._can_skip()
    assert made("rloo", tmp_path / "other", *WORDS, "train.beta=0.1")._can_skip()


def test_micro_batches_hold_whole_groups(tmp_path: Path) -> None:
    """Of a step the same rows and the same gradients; TRL shuffles them."""
    words = [*WORDS, "train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=2"]
    gradients, drawn = {}, {}
    trainer = made("grpo", tmp_path / "run", *words)
    rows = next(iter(trainer.get_train_dataloader()))
    for together in (True, False):
        trainer._compact_batches, trainer._buffered_inputs = together, None
        trainer.model.zero_grad()
        with training_attention(trainer.model, None):
            torch.manual_seed(5)
            trainer._prepare_inputs(rows)
            batches = trainer._buffered_inputs
            for batch in batches:
                trainer._compute_loss(trainer.model, batch).backward()
        gradients[together] = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        drawn[together] = [batch["rows"].tolist() for batch in batches]
    assert (gradients[True] - gradients[False]).norm() <= 1e-5 * gradients[False].norm() != 0
    assert all(len({*rows}) == 1 for rows in drawn[True]) and any(len({*rows}) > 1 for rows in drawn[False])
    assert sorted(chain(*drawn[True])) == sorted(chain(*drawn[False]))


def test_steps_keep_their_rows() -> None:
    rows = torch.tensor([3, 1, 1, 3, 2, 1, 2, 3])
    batches = [
        {"rows": r, "x": x, "n": torch.tensor(7)} for r, x in zip(rows.split(2), torch.arange(8).split(2), strict=True)
    ]
    found = by_prompt(batches, 2)
    assert [b["rows"].tolist() for b in found] == [[3, 3], [1, 1], [2, 2], [1, 3]]
    assert [b["x"].tolist() for b in found] == [[0, 3], [1, 2], [4, 6], [5, 7]]
    assert all(b["n"] == 7 for b in found)


@pytest.mark.parametrize("recipe", slow_after(1, ["grpo", "rloo"]))
def test_completions_with_a_prefix_cache_and_without(recipe: str, tmp_path: Path) -> None:
    trainer = made(recipe, tmp_path / "run", *WORDS, "train.per_device_train_batch_size=16")
    found, widths = [], []
    trainer.model.base_model.layers[0].register_forward_pre_hook(lambda module, args: widths.append(len(args[0])))
    rows = next(iter(trainer.get_train_dataloader()))
    for caching in (True, False):
        trainer._prefix_caching = caching
        torch.manual_seed(7)
        widths.clear()
        found.append(trainer._generate_and_score_completions(rows)["completion_ids"])
        assert widths[:2] == [4 if caching else 16, 16]
    assert torch.equal(*found)


def test_the_first_ratio_is_1_and_kl_0(tmp_path: Path) -> None:
    """With every speed-up: to the bit in the same batch, and by TRL's own pass up to rounding."""
    words = [*WORDS, "train.beta=0.1", "train.num_iterations=2", "adapter=lora"]
    trainer = made("grpo", tmp_path / "run", *words)
    rows = next(iter(trainer.get_train_dataloader()))
    base = trainer.model.get_base_model()
    with training_attention(base, None), training_layers(base, True, None):
        inputs = trainer._generate_and_score_completions(rows)
        loss = trainer.compute_loss(trainer.model, inputs)
    mask, old = inputs["completion_mask"].bool(), inputs["old_per_token_logps"]
    assert torch.equal(old[mask], inputs["ref_per_token_logps"][mask]) and len({*inputs["rows"].tolist()}) == 2
    assert trainer._metrics["train"]["kl"] == [0.0]
    assert loss.item() == pytest.approx(-inputs["advantages"].mean().item(), abs=1e-7)
    plain = made("grpo", tmp_path / "plain", *words, "train.tiled_head=false", "train.compact_batches=false")
    ids, seen = (torch.cat([inputs[f"{part}_{n}"] for part in ("prompt", "completion")], 1) for n in ("ids", "mask"))
    with torch.no_grad():
        theirs = plain._get_per_token_logps_and_entropies(plain.model, ids, seen, mask.shape[1])[0]
    torch.testing.assert_close(old[mask], theirs[mask], rtol=1e-5, atol=2e-5)
