"""TRL's RewardTrainer on rendered pairs, and the checks of pairs and model before it trains."""

from __future__ import annotations

from typing import Any

import torch
from trl import RewardConfig, RewardTrainer

from gemma_tune.chat import form_of
from gemma_tune.config import Config
from gemma_tune.data.pairs import Pairs
from gemma_tune.errors import UserError
from gemma_tune.models.classifier import HEAD
from gemma_tune.models.unwrap import language_part
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.pairs import PairTrainer, pair_arguments, pair_trainer

_LOOKED_AT = 1000


class GemmaRewardTrainer(PairTrainer, RewardTrainer):  # type: ignore[misc]
    """RewardTrainer with what `PairTrainer` adds."""


def reward_arguments(cfg: Config, folder: RunFolder, device: torch.device) -> RewardConfig:
    """RewardTrainer's arguments; see `arguments`."""
    return pair_arguments(RewardConfig, cfg, folder, device)


def reward_trainer(cfg: Config, args: RewardConfig, model: Any, tokenizer: Any, train: Pairs) -> GemmaRewardTrainer:
    """The trainer for rendered pairs.

    Raises:
        UserError: As `build_trainer`.
    """
    return pair_trainer(GemmaRewardTrainer, cfg, args, model, tokenizer, train.dataset)


def score_checks(model: Any, tokenizer: Any, train: Pairs) -> list[str]:
    """Checks that the score is read where an answer ends, and that its head is trained.

    Transformers' `…ForSequenceClassification` reads the score at the last token that isn't `config.pad_token_id`;
    without that id, at padding.

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
    looked = train.dataset[:_LOOKED_AT]
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
