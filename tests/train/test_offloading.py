"""TRL's offloading of activations beside our forward passes: the same loss and gradients, to the bit.

Its streams need a GPU. Here it copies what is saved from the CPU to the CPU, without them: what it does to the graph.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_dpo_trainer import FEW, built
from trl.models.activation_offloading import get_act_offloading_ctx_manager

from gemma_tune.models.contexts import training_attention


def test_loss_and_gradients_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPO on adapters: the prompts of pairs shared, our head, recomputed layers."""
    trainer, model, _ = built(tmp_path, "adapter=lora", *FEW, "train.gradient_checkpointing=true")
    trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
    inputs = next(iter(trainer.get_train_dataloader()))

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        with training_attention(model.get_base_model(), None):
            loss = trainer.training_step(model, dict(inputs))
        return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    loss, gradients = step()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)
    offloading = get_act_offloading_ctx_manager(model, use_pin_memory=False, use_streams=False, min_offload_size=0)
    trainer.maybe_activation_offload_context = offloading
    again, others = step()
    assert offloading.tensor_id > 100 and len(offloading.tracker) < 5  # all but what metrics save came back
    assert torch.equal(loss, again) and len(gradients) > 4
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
