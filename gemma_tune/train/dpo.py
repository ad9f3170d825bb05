"""TRL's DPOTrainer on rendered pairs; the reference is the model before training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from gemma_tune.config import Config
from gemma_tune.data.pairs import Pairs
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.pairs import pair_trainer
from gemma_tune.train.reference import ReferenceTrainer, reference_arguments


class GemmaDPOTrainer(ReferenceTrainer, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer with what `ReferenceTrainer` adds."""

    media_in_batch = 2  # of the chosen answers' prompts, then of the rejected ones'

    @property
    def head_outputs(self) -> tuple[str, ...]:  # type: ignore[override]
        """What TRL reads for its metrics, and for WPO's weights."""
        return ("entropy", "mean_logits", "is_top1", *(("log_sum_sq_probs",) if self.use_weighting else ()))


def dpo_arguments(cfg: Config, folder: RunFolder, device: torch.device) -> DPOConfig:
    """DPOTrainer's arguments; see `arguments`.

    Raises:
        UserError: As there.
    """
    # Several losses are added up, with train.extra.loss_weights
    return reference_arguments(DPOConfig, cfg, folder, device, {"loss_type": cfg.train.joined_losses})


def dpo_trainer(cfg: Config, args: DPOConfig, model: Any, tokenizer: Any, train: Pairs) -> GemmaDPOTrainer:
    """The trainer for rendered pairs; the reference's log-probabilities are computed here.

    Raises:
        UserError: As `build_trainer`.
    """
    return pair_trainer(GemmaDPOTrainer, cfg, args, model, tokenizer, train.dataset)


def likelihood_warning(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """The warning that the chosen answers have become less likely; None if they haven't, or if it isn't measured.

    DPO's loss depends only on the difference: it also falls when both answers become less likely, the rejected one
    faster.
    """
    name, margin = "preference_chosen_loss", "preference_margin"
    if after.get(name, 0.0) <= before.get(name, math.inf):
        return None
    wider = after.get(margin, 0.0) > before.get(margin, math.inf)
    return (
        f"warning: the chosen answers of the held-out pairs have become less likely ({name} {before[name]:.4g} before, "
        f"{after[name]:.4g} after){', the rejected ones still more so' * wider}. Where answers get worse: a lower "
        "train.learning_rate, a higher train.beta, or train.loss_type=sigmoid+sft."
    )
