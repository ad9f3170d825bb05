"""TRL's RewardTrainer on pairs that are rendered already, and what must hold of them and of the model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from trl import RewardConfig, RewardTrainer

from gemma_tune.chat import form_of
from gemma_tune.config import Config
from gemma_tune.data.pairs import Pairs, find_pairs
from gemma_tune.errors import UserError
from gemma_tune.models.classifier import HEAD
from gemma_tune.models.unwrap import language_part
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.arguments import PAD_TO, arguments
from gemma_tune.train.base import GemmaTrainer, build_trainer
from gemma_tune.train.nonfinite import NonFiniteGuard

# The general checks that hold of a classifier, too (`preflight`).
GENERAL = ("<bos>", "template", "experts", "types", "memory")
_LOOKED_AT = 1000


class GemmaRewardTrainer(GemmaTrainer, RewardTrainer):  # type: ignore[misc]
    """RewardTrainer, and what `GemmaTrainer` says; rows come as token ids, rendered by our templates."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows as they are."""
        return dataset


def reward_arguments(cfg: Config, folder: RunFolder, device: torch.device) -> RewardConfig:
    """RewardTrainer's arguments; see `arguments`."""
    own: dict[str, Any] = {
        "max_length": cfg.train.max_length,
        "pad_to_multiple_of": PAD_TO,
        # TRL switches every dropout off, the adapter's, too; one that was asked for stays
        "disable_dropout": cfg.adapter.lora_dropout == 0,
    }
    return arguments(RewardConfig, cfg, folder, device, own)


def reward_trainer(cfg: Config, args: RewardConfig, model: Any, tokenizer: Any, train: Pairs) -> GemmaRewardTrainer:
    """The trainer for rendered pairs.

    Raises:
        UserError: As `build_trainer`.
    """
    guard = NonFiniteGuard(partial(find_pairs, cfg.data, tokenizer, cfg.train.max_length))
    return build_trainer(GemmaRewardTrainer, cfg, args, model, tokenizer, train.for_reward, guard)


def score_checks(model: Any, tokenizer: Any, train: Pairs) -> list[str]:
    """Whether the score is read where an answer ends, and its head is trained.

    The class takes the last token that isn't `config.pad_token_id`: without that id it would be padding.

    Returns:
        A line for each check.

    Raises:
        UserError: One that doesn't hold.
    """
    base, pad = language_part(model), tokenizer.pad_token_id
    if base.config.pad_token_id != pad or tokenizer.padding_side != "right":
        raise UserError("✗ padding: the model's pad_token_id isn't the tokenizer's, or rows are padded on the left.")
    stops = form_of(tokenizer).stop_tokens
    ids = set(tokenizer.convert_tokens_to_ids(list(stops)))
    looked = train.for_reward[:_LOOKED_AT]
    last = {row[-1] for side in ("chosen_ids", "rejected_ids") for row in looked[side]}
    if not last <= ids:
        other = tokenizer.convert_ids_to_tokens(min(last - ids))
        raise UserError(f"✗ score: a conversation ends with {other!r}, not with {' or '.join(stops)}.")
    trained = [n for n, p in model.named_parameters() if p.requires_grad and HEAD in n.split(".")]
    if not trained:
        raise UserError(f"✗ score: the head ({HEAD}) has no gradient.")
    return [
        f"✓ score: read at {' or '.join(stops)}, the last token of each conversation "
        f"({2 * len(looked['chosen_ids']):,} looked at); the head is trained",
        f"✓ padding: on the right, id {pad} in config.json",
    ]
