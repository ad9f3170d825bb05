"""TRL's SFTTrainer with what Gemma and exactness need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.trainer_utils import has_length
from trl import SFTConfig, SFTTrainer

from gemma_tune.config import Config
from gemma_tune.config.own_functions import LOSS
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.models.towers.towers import cache_of
from gemma_tune.train.base import GemmaTrainer
from gemma_tune.train.batches import WithMedia, has_media, packed
from gemma_tune.train.build import build_trainer
from gemma_tune.train.grouped_samplers import BeginningGroups, LengthGroups, beginnings, lengths
from gemma_tune.train.nonfinite import FindRows, NonFiniteGuard
from gemma_tune.user_code import in_user_code, load_function, split


class GemmaSFTTrainer(GemmaTrainer, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with what `GemmaTrainer` adds; besides:

    - Batches grouped by length or by beginning come in random order, and in the same order when resumed.

    Attributes:
        names_media: Whether its batches say of which files their media are.
    """

    names_media = False
    head_outputs = ("entropy", "is_top1")

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if strategy not in ("group_by_length", "group_by_beginning") or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        if strategy == "group_by_length":
            return LengthGroups(lengths(dataset), rows, seed)
        return BeginningGroups(beginnings(dataset), rows, seed)


class OwnLossTrainer(GemmaSFTTrainer):
    """GemmaSFTTrainer with a loss of the user's own, called as Transformers' `compute_loss_func`.

    TRL's argument of that name is deprecated, and there the model runs a second time at each step, for metrics that
    belong to TRL's own losses. Here it runs once.

    Args:
        loss: Called with the model's outputs (`logits`, [B, S, V]), the labels, [B, S], not shifted, -100 where
            nothing is trained, and `num_items_in_batch`, the trained tokens of the whole optimizer step; None where
            they are not counted, and then the mean over the forward passes is taken.
        named: `path/to/file.py:function`, for messages.
    """

    def __init__(self, *args: Any, loss: Callable[..., Any], named: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loss, self._named = loss, named

    @property
    def not_finite_way(self) -> str:
        """What to do about a loss that is NaN or infinite: it is the user's own."""
        return (
            f"The loss is that of train.loss={self._named}: look there for a logarithm of 0, a division by 0 and a "
            "mean of nothing (rows in which all labels are -100); else lower train.learning_rate."
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The user's loss.

        Raises:
            UserError: It raised an exception, or gave anything but a tensor with one number that depends on the
                outputs.
        """
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False)
        with in_user_code(f"train.loss={self._named}", split(self._named)[0]):
            loss = self._loss(outputs, inputs["labels"], num_items_in_batch=num_items_in_batch)
        if problem := _loss_problem(loss):
            raise UserError(f"train.loss={self._named}: it gave {problem}.")
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # as Trainer does: DDP averages
        return (loss, outputs) if return_outputs else loss


def _loss_problem(loss: Any) -> str | None:
    """Why what a user's loss gave can't be trained on; None where it can."""
    wanted = "return a tensor with one number, made from outputs.logits"
    if not isinstance(loss, torch.Tensor):
        return f"{type(loss).__name__}; {wanted}"
    if loss.numel() != 1:
        return f"a tensor of shape {tuple(loss.shape)}; {wanted}"
    if not loss.requires_grad:
        return (
            "a tensor of one number from which no gradient leads back to outputs.logits; compute it from them with "
            f"torch, without .detach(), .item(), argmax or no_grad; {wanted}"
        )
    return None


def sft_trainer(
    cfg: Config,
    args: SFTConfig,
    model: Any,
    tokenizer: Any,
    train: TokenizedRows,
    find_rows: FindRows,
    kind: type[GemmaSFTTrainer] = GemmaSFTTrainer,
    **more: Any,
) -> GemmaSFTTrainer:
    """The trainer for rendered rows.

    Args:
        cfg: The configuration.
        args: The trainer's arguments.
        model: What is trained.
        tokenizer: Its tokenizer.
        train: The rows.
        find_rows: Where rows stand, by their token ids.
        kind: The trainer's class, and `more` what it takes besides.

    Raises:
        UserError: As `build_trainer`; or `train.loss` can't be loaded.
    """
    if cfg.train.loss is not None:  # refused for trainers that have a loss of their own
        loss = load_function(cfg.train.loss, "train.loss", LOSS)
        kind, more = OwnLossTrainer, {"loss": loss, "named": cfg.train.loss}
    dataset = train.dataset
    if has_media(dataset) and args.packing and cfg.data.streaming:
        raise UserError(
            "train.packing=true with data.streaming=true: rows with images are packed all at once; set one."
        )
    if has_media(dataset) and args.packing:
        dataset = packed(dataset, args.max_length)
        args.dataset_kwargs = {"skip_prepare_dataset": True}
    trainer = build_trainer(kind, cfg, args, model, tokenizer, dataset, NonFiniteGuard(find_rows), **more)
    if has_media(dataset):  # TRL takes no collator of ours where it packs
        named, cache = kind.names_media, cache_of(model)
        trainer.data_collator = WithMedia(trainer.data_collator, tokenizer.media, named=named, cache=cache)
    return trainer
