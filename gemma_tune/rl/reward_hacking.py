"""Detects reward hacking: the training reward rises while accuracy on held-out rows falls."""

from __future__ import annotations

import statistics
from typing import Any

from transformers import TrainerCallback

from gemma_tune.evals.evaluation import Evaluation, as_text
from gemma_tune.evals.statistics import paired_test

_PART = 5  # the first and the last fifth of the steps are compared


class RewardHackingMonitor(TrainerCallback):  # type: ignore[misc]
    """Records the mean reward of every step.

    Args:
        before: The evaluation before training; may be empty.

    Attributes:
        rewards: The mean reward of each logged step.
    """

    def __init__(self, before: Evaluation) -> None:
        self._before = before
        self.rewards: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restores the rewards of a resumed run from its checkpoint."""
        self.rewards = [line["reward"] for line in state.log_history if isinstance(line.get("reward"), float)]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and isinstance(logs.get("reward"), float):
            self.rewards.append(logs["reward"])

    @property
    def figures(self) -> dict[str, float]:
        """The mean reward at the beginning and at the end of training."""
        n = max(1, len(self.rewards) // _PART)
        if not self.rewards:
            return {}
        return {"reward_first": statistics.fmean(self.rewards[:n]), "reward_last": statistics.fmean(self.rewards[-n:])}

    def warnings(self, after: Evaluation) -> list[str]:
        """A warning if the reward rose in training and the headline metric fell on the same held-out rows (p < 0.05).

        Args:
            after: The evaluation after training.
        """
        name, reward = self._before.headline, self.figures
        if name is None or name not in after.rows or not reward or reward["reward_last"] <= reward["reward_first"]:
            return []
        first = {row["id"]: row["score"] for row in self._before.rows.get(name, ())}
        pairs = [(row["score"], first[row["id"]]) for row in after.rows[name] if row["id"] in first]
        if not pairs:
            return []
        test = paired_test([now for now, _ in pairs], [then for _, then in pairs])
        if test.difference.mean is None or test.difference.mean >= 0 or test.p_value >= 0.05:
            return []
        before, now = as_text(name, self._before.figures[name]), as_text(name, after.figures[name])
        return [
            f"warning: the reward rose from {reward['reward_first']:.3g} to {reward['reward_last']:.3g}, and {name} on "
            f"held-out rows fell from {before} to {now} (p = {test.p_value:.2g}): the model has learned to be "
            "rewarded, not to be right. Read eval/completions.jsonl; docs/rl.md names the usual ways."
        ]
