"""Quantization-aware training: the rounded weights learn to give the unquantized model's probabilities."""

from __future__ import annotations

from typing import Any

import torch

from gemma_tune.models.unwrap import language_part
from gemma_tune.quant.layers import forget_rounded, rounded_once
from gemma_tune.train.distill import DistillationTrainer


class GridTrainer(DistillationTrainer):
    """DistillationTrainer for a model on its grid; the loss is that of `DistillationTrainer.compute_loss`."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; weights are rounded once in an optimizer step, if it has several.

        A backward pass needs the rounded weights anyway, but where activations are computed again it has those of one
        layer at a time, and so they are rounded each time.
        """
        base, last = language_part(self.model), self.accelerator.sync_gradients
        several = self.args.gradient_accumulation_steps > 1 and not self.args.gradient_checkpointing
        try:
            with rounded_once(base, in_step=several):
                return super().training_step(model, inputs, *args, **kwargs)
        finally:
            if several and last:
                forget_rounded(base)
