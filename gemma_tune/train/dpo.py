"""TRL's DPOTrainer on rendered pairs; the reference is the model before training."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from gemma_tune.config import Config
from gemma_tune.data.pairs import Pairs
from gemma_tune.models.adapter import drop_reference, plain_copies
from gemma_tune.models.contexts import evaluating
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.pairs import PairTrainer, pair_arguments, pair_trainer


class GemmaDPOTrainer(PairTrainer, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer with what `PairTrainer` adds; besides:

    - The reference is the model as it is before the first step. Its log-probabilities of every answer are computed
      once, before training. So no second model is held in memory, and none is loaded by the name in the config, which
      need not be the one that was loaded.
    - With an adapter, the reference is the base without it. Adapters that don't begin at zero are the exception: one
      that is continued, PiSSA, OLoRA and LoftQ. For them TRL makes a copy of the adapter, which is removed again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        try:
            with plain_copies(model):
                super().__init__(*args, **kwargs)
        finally:
            drop_reference(model)

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        with evaluating(self.model):  # else dropout of the adapter would change the reference
            return super()._precompute_ref_logps(*args, **kwargs)


def dpo_arguments(cfg: Config, folder: RunFolder, device: torch.device) -> DPOConfig:
    """DPOTrainer's arguments; see `arguments`.

    Raises:
        UserError: As there.
    """
    t = cfg.train
    own: dict[str, Any] = {
        # Several are added up, with train.extra.loss_weights
        "loss_type": [name.strip() for name in (t.loss_type or "sigmoid").split("+")],
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": t.per_device_train_batch_size,
    }
    if t.beta is not None:
        own["beta"] = t.beta
    return pair_arguments(DPOConfig, cfg, folder, device, own)


def dpo_trainer(cfg: Config, args: DPOConfig, model: Any, tokenizer: Any, train: Pairs) -> GemmaDPOTrainer:
    """The trainer for rendered pairs; the reference's log-probabilities are computed here.

    Raises:
        UserError: As `build_trainer`.
    """
    with _no_bar_in_files():
        return pair_trainer(GemmaDPOTrainer, cfg, args, model, tokenizer, train.dataset)


@contextlib.contextmanager
def _no_bar_in_files() -> Iterator[None]:
    """Shows TRL's progress bar of the reference only in a terminal; this variable is the only switch it has."""
    said = os.environ.get("TQDM_DISABLE")
    if said is None and not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if said is None:
            os.environ.pop("TQDM_DISABLE", None)


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
