"""What KTO needs of its answers, and whether its weights make up for unequal numbers of good and bad ones."""

from __future__ import annotations

from gemma_tune.config import Config
from gemma_tune.data.unpaired import Labelled
from gemma_tune.errors import UserError


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
