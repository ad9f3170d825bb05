"""What trainers with a reference model have in common: it is the model as it was before the first step."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch

from gemma_tune.config import Config
from gemma_tune.models.adapters.adapter import complete_reference, drop_reference, plain_copies
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.towers.towers import seeing
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.batches import MEDIA, WithMedia, has_media
from gemma_tune.train.pairs import A, PairTrainer, pair_arguments


def reference_arguments(kind: type[A], cfg: Config, folder: RunFolder, device: torch.device, own: dict[str, Any]) -> A:
    """The arguments of a trainer with a reference; see `pair_arguments`."""
    t = cfg.train
    common = {
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": t.per_device_train_batch_size,  # KTO's batches must be those of training
    }
    return pair_arguments(kind, cfg, folder, device, common | ({} if t.beta is None else {"beta": t.beta}) | own)


class ReferenceTrainer(PairTrainer):
    """What stands before DPOTrainer and KTOTrainer, with what `PairTrainer` adds; besides:

    - The reference is the model as it is before the first step. Its log-probabilities of every answer are computed
      once, before training. So no second model is held in memory, and none is loaded by the name in the config, which
      need not be the one that was loaded.
    - With an adapter, the reference is the base without it. Adapters that don't begin at zero are the exception: one
      that is continued, PiSSA, OLoRA and LoftQ. For them TRL makes a copy of the adapter, which is removed again.
    - Every forward pass of a batch gets the media of its prompts.

    Attributes:
        media_in_batch: How often the media of all prompts stand in a batch.
    """

    data_collator: Any
    processing_class: Any
    media_in_batch = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        try:
            with plain_copies(model), _no_bar_in_files():
                super().__init__(*args, **kwargs)
        finally:
            drop_reference(model)

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        if has_media(dataset):  # this comes before the first batch
            self.data_collator = WithMedia(self.data_collator, self.processing_class.media, self.media_in_batch)
        complete_reference(self.model)
        self.use_our_forward(self.model)  # TRL asks for the reference before its __init__ ends
        with evaluating(self.model):  # else dropout of the adapter would change the reference
            return super()._precompute_ref_logps(dataset, *args, **kwargs)  # type: ignore[misc]

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's log-probabilities of a batch under the reference, which gets its media, too."""
        inputs = dict(inputs)
        with seeing(self.model, inputs.pop(MEDIA, None), passes=self.passes_with_media):
            return super().compute_ref_log_probs(model, inputs)  # type: ignore[misc]


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
