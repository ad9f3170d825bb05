"""What the trainers of preferences have in common: options, rows and the stop at a NaN loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from gemma_tune.config import Config
from gemma_tune.data.pairs import find_pairs
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.arguments import PAD_TO, arguments
from gemma_tune.train.base import GemmaTrainer
from gemma_tune.train.build import build_trainer
from gemma_tune.train.nonfinite import NonFiniteGuard

A = TypeVar("A")


class PairTrainer(GemmaTrainer):
    """GemmaTrainer whose rows come as token ids that our templates have rendered, so TRL prepares nothing."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


T = TypeVar("T", bound=PairTrainer)


def pair_arguments(
    kind: type[A], cfg: Config, folder: RunFolder, device: torch.device, own: dict[str, Any] | None = None
) -> A:
    """The arguments of a trainer of preferences; see `arguments`."""
    common: dict[str, Any] = {
        "max_length": cfg.train.max_length,
        "pad_to_multiple_of": PAD_TO,
        # TRL switches every dropout off, the adapter's, too; one that was asked for stays
        "disable_dropout": cfg.adapter.lora_dropout == 0,
    }
    return arguments(kind, cfg, folder, device, common | (own or {}))


def pair_trainer(
    kind: type[T],
    cfg: Config,
    args: Any,
    model: Any,
    tokenizer: Any,
    dataset: Any,
    find: Callable[..., list[str]] = find_pairs,
) -> T:
    """The trainer for rendered rows; see `build_trainer`. `find` finds training rows by their token ids."""
    guard = NonFiniteGuard(partial(find, cfg.data, tokenizer, cfg.train.max_length))
    return build_trainer(kind, cfg, args, model, tokenizer, dataset, guard)
