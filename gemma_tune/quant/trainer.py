"""Quantization-aware training: the rounded weights learn to give the unquantized model's probabilities."""

from __future__ import annotations

from typing import Any

import torch

from gemma_tune.models.unwrap import language_part
from gemma_tune.quant.layers import rounded_once
from gemma_tune.train.distill import DistillationTrainer


class GridTrainer(DistillationTrainer):
    """DistillationTrainer for a model on its grid; the loss is that of `DistillationTrainer.compute_loss`."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass, in which a tied embedding is rounded once."""
        with rounded_once(language_part(self.model)):
            return super().training_step(model, inputs, *args, **kwargs)
