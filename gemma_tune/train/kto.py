"""TRL's KTOTrainer on rendered answers; the reference is the model before training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from gemma_tune.config import Config
from gemma_tune.data.unpaired import Labelled, find_labelled
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.pairs import pair_trainer
from gemma_tune.train.reference import ReferenceTrainer, reference_arguments


class GemmaKTOTrainer(ReferenceTrainer, KTOTrainer):  # type: ignore[misc]
    """KTOTrainer with what `ReferenceTrainer` adds."""

    head_outputs = ("entropy", "mean_logits")

    @property
    def passes_with_media(self) -> int:  # type: ignore[override]
        """The answers to other prompts have a forward pass of their own."""
        return 2 if self.calculate_KL else 1


def kto_arguments(cfg: Config, folder: RunFolder, device: torch.device) -> KTOConfig:
    """KTOTrainer's arguments; see `arguments`.

    Raises:
        UserError: As there.
    """
    t = cfg.train
    own: dict[str, Any] = {
        "desirable_weight": t.desirable_weight,
        "undesirable_weight": t.undesirable_weight,
        "train_sampling_strategy": "sequential",  # the order is drawn in `in_batches`
    }
    own |= {} if t.loss_type is None else {"loss_type": t.loss_type}
    return reference_arguments(KTOConfig, cfg, folder, device, own)


def kto_trainer(cfg: Config, args: KTOConfig, model: Any, tokenizer: Any, train: Labelled) -> GemmaKTOTrainer:
    """The trainer for rendered answers; the reference's log-probabilities are computed here.

    Raises:
        UserError: As `build_trainer`.
    """
    dataset = in_batches(train.dataset, args.per_device_train_batch_size, cfg.seed)
    return pair_trainer(GemmaKTOTrainer, cfg, args, model, tokenizer, dataset, find_labelled)


def in_batches(dataset: Dataset, size: int, seed: int) -> Dataset:
    """The answers in the order of training, each with an answer to another prompt, for the KL reference point.

    TRL's rule: in each batch, answers move on by one prompt. A last batch of one answer takes that of the batch before
    it, where TRL would take its own, which is no reference. Batches are the same in every epoch.

    Args:
        dataset: `prompt_ids`, `completion_ids` and `label`, [N].
        size: Answers in a batch on one device.
        seed: Seed of the order.

    Returns:
        The same rows, and `KL_completion_ids`.
    """
    n = len(dataset)
    starts = range(0, n, size)
    other = [i for start in starts for i in (min(start + size, n) - 1, *range(start, min(start + size, n) - 1))]
    if n % size == 1 and n > 1:
        other[-1] = n - 2
    order = np.random.default_rng(seed).permutation(n)
    ordered, mismatched = dataset.select(order), dataset.select(order[other])

    def with_other(batch: dict[str, Any], places: list[int]) -> dict[str, Any]:
        return {**batch, "KL_completion_ids": mismatched[places]["completion_ids"]}

    return ordered.map(with_other, batched=True, with_indices=True, desc=None)
