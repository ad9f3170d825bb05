"""TRL's DPOTrainer on pairs that are rendered already, with the model as it began for its reference."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from gemma_tune.config import Config
from gemma_tune.data.pairs import Pairs, find_pairs
from gemma_tune.models.adapter import drop_reference, plain_copies
from gemma_tune.models.contexts import evaluating
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.arguments import PAD_TO, arguments
from gemma_tune.train.base import GemmaTrainer, build_trainer
from gemma_tune.train.nonfinite import NonFiniteGuard
from gemma_tune.train.preflight import CHECKS

# Each pair counts the same, however many tokens it has.
WITH_PAIRS = tuple(name for name in CHECKS if name != "gradient accumulation")


class GemmaDPOTrainer(GemmaTrainer, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer, and what `GemmaTrainer` says; besides:

    - rows come as token ids, rendered by our templates.
    - the reference is the model as it is before the first step, whatever that is: its log-probabilities of every answer
      are taken once, before training. So no second model is held in memory, and none is loaded by the name in the
      config, which need not be what was loaded.
    - with an adapter that is the base without it, but for those that don't begin at nothing: one that is continued,
      PiSSA, OLoRA and LoftQ. TRL takes a copy of the adapter for them, which is removed again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        try:
            with plain_copies(model):
                super().__init__(*args, **kwargs)
        finally:
            drop_reference(model)

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        with evaluating(self.model):  # an adapter's dropout would be in the reference for good
            return super()._precompute_ref_logps(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows as they are."""
        return dataset


def dpo_arguments(cfg: Config, folder: RunFolder, device: torch.device) -> DPOConfig:
    """DPOTrainer's arguments; see `arguments`.

    Raises:
        UserError: As there.
    """
    t = cfg.train
    own: dict[str, Any] = {
        # Several are added up, with train.extra.loss_weights
        "loss_type": [name.strip() for name in (t.loss_type or "sigmoid").split("+")],
        "max_length": t.max_length,
        "pad_to_multiple_of": PAD_TO,
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": t.per_device_train_batch_size,
        # TRL switches every dropout off, the adapter's, too; one that was asked for stays
        "disable_dropout": cfg.adapter.lora_dropout == 0,
    }
    if t.beta is not None:
        own["beta"] = t.beta
    return arguments(DPOConfig, cfg, folder, device, own)


def dpo_trainer(cfg: Config, args: DPOConfig, model: Any, tokenizer: Any, train: Pairs) -> GemmaDPOTrainer:
    """The trainer for rendered pairs, which has asked the reference already.

    Raises:
        UserError: As `build_trainer`.
    """
    guard = NonFiniteGuard(partial(find_pairs, cfg.data, tokenizer, cfg.train.max_length))
    with _no_bar_in_files():
        return build_trainer(GemmaDPOTrainer, cfg, args, model, tokenizer, train.dataset, guard)


@contextlib.contextmanager
def _no_bar_in_files() -> Iterator[None]:
    """TRL's bar of the reference only where there is a terminal; the variable is the one switch that it has."""
    said = os.environ.get("TQDM_DISABLE")
    if said is None and not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if said is None:
            os.environ.pop("TQDM_DISABLE", None)


def likelihood_warning(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """What to say where the chosen answers have become less likely; None where they haven't, or it isn't measured.

    DPO's loss looks at the difference alone: it falls, too, where both answers fall and the rejected one faster.
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
