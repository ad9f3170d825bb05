"""TRL's KTOTrainer on rendered answers; the reference is the model before training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from gemma_tune.config import Config
from gemma_tune.data.unpaired import Labelled, find_labelled
from gemma_tune.errors import UserError
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


def check_answers(cfg: Config, train: Labelled) -> None:
    """Checks the answers, and adds what `balance_warning` says to their notes.

    Raises:
        UserError: There is but one answer.
    """
    if len(train.dataset) < 2:
        raise UserError("data.train_file: KTO compares the answers of a batch, and there is one answer only.")
    train.balance = balance_warning(cfg, train)


def balance_warning(cfg: Config, train: Labelled) -> str | None:
    """The warning that the weights don't make up for unequal numbers of good and bad answers; None if they do.

    Equation 8 of https://arxiv.org/abs/2402.01306: desirable_weight · good / (undesirable_weight · bad) is between 1
    and 4/3.
    """
    good, bad, t = train.desirable, train.undesirable, cfg.train
    if not good or not bad:
        kind = "bad" if good else "good"
        return f"warning: no training row has a {kind} answer; KTO learns from good and bad ones (`label`)."
    share = t.desirable_weight * good / (t.undesirable_weight * bad) if t.undesirable_weight else float("inf")
    if 0.99 <= share <= 1.34:
        return None
    if good < bad:
        way = f"train.desirable_weight={t.undesirable_weight * bad / good:.3g}"
    else:
        way = f"train.undesirable_weight={t.desirable_weight * good / bad:.3g}"
    return (
        f"warning: {good:,} good and {bad:,} bad answers with weights {t.desirable_weight:g} and "
        f"{t.undesirable_weight:g}: the good ones weigh {share:.2f} times as much in all, and KTO's authors advise 1 "
        f"to 1.33; {way} does."
    )
