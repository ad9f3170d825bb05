"""TRL's SFTTrainer with what Gemma and exactness need."""

from __future__ import annotations

from typing import Any

from transformers.trainer_utils import has_length
from trl import SFTConfig, SFTTrainer

from gemma_tune.config import Config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.train.base import GemmaTrainer, build_trainer
from gemma_tune.train.head_on_trained_tokens import head_on_trained_tokens
from gemma_tune.train.length_grouped_sampler import LengthGroups
from gemma_tune.train.nonfinite import FindRows, NonFiniteGuard


class GemmaSFTTrainer(GemmaTrainer, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with what `GemmaTrainer` adds; besides:

    - Length-grouped batches come in random order, and in the same order when resumed.
    - On a CPU the head computes the logits of trained tokens only.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        lengths = [len(ids) for ids in dataset["input_ids"]]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroups(lengths, self.args.train_batch_size, seed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, with logits of trained tokens only, where TRL would compute those of all tokens."""
        plain = self.compute_loss_func is None and self.label_smoother is None and not return_outputs
        if not plain or self.accelerator.device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with head_on_trained_tokens(self.model, inputs) as trained:
            return super().compute_loss(model, trained, False, num_items_in_batch)


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
        UserError: As `build_trainer`.
    """
    return build_trainer(kind, cfg, args, model, tokenizer, train.dataset, NonFiniteGuard(find_rows), **more)
