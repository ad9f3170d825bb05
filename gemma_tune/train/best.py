"""The best step by a metric of the evaluations during training: kept and loaded at the end; and early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from gemma_tune.config import TrainConfig
from gemma_tune.config.eval import lower_is_better
from gemma_tune.config.train import BY_METRIC
from gemma_tune.errors import RunError
from gemma_tune.validation.suggest import did_you_mean


def greater_is_better(train: TrainConfig) -> bool:
    """Whether a greater value is better: as configured, else by the metric's name."""
    if train.greater_is_better is not None:
        return train.greater_is_better
    return not lower_is_better(str(train.metric_for_best_model))


def best_arguments(train: TrainConfig) -> dict[str, Any]:
    """The arguments with which Transformers' trainer keeps the best step and loads it at the end."""
    if train.metric_for_best_model is None:
        return {}
    found: dict[str, Any] = {
        # The prefix that the trainer gives to every figure; without it Transformers takes a name's own `eval_` for it.
        "metric_for_best_model": f"eval_{train.metric_for_best_model}",
        "greater_is_better": greater_is_better(train),
        "load_best_model_at_end": True,
        "save_strategy": "best",  # checkpoints every save_steps come from the callback SaveSteps
        "restore_callback_states_from_checkpoint": train.early_stopping_patience is not None,
    }
    if train.lr_scheduler_type in BY_METRIC:  # whose own default is that lower is better
        found["lr_scheduler_kwargs"] = {"mode": "max" if greater_is_better(train) else "min"}
    return found


def best_callbacks(train: TrainConfig) -> list[TrainerCallback]:
    """The callbacks for checkpoints beside the best ones, and for early stopping."""
    if train.metric_for_best_model is None:
        return []
    found: list[TrainerCallback] = [SaveSteps(train.save_steps)]
    if train.early_stopping_patience is not None:
        found.append(EarlyStoppingCallback(train.early_stopping_patience, train.early_stopping_threshold))
    return found


class SaveSteps(TrainerCallback):
    """Checkpoints every `save_steps` steps and at the end; Transformers omits them when it saves the best ones.

    Args:
        save_steps: Steps between two of these checkpoints, or None for none.
    """

    def __init__(self, save_steps: int | None) -> None:
        self._save_steps = save_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._save_steps:
            control.should_save |= state.global_step % self._save_steps == 0 or state.global_step >= state.max_steps


def why_not_best(metric: str, figures: Mapping[str, float], step: int, known: bool) -> str | None:
    """Why a step can't be the best one; None if it can.

    Args:
        metric: The deciding metric.
        figures: The metrics of this step.
        step: Optimizer steps done.
        known: Whether an earlier evaluation gave the metric.

    Raises:
        RunError: No evaluation has given the metric so far.
    """
    if metric not in figures:
        if known:
            return "the evaluation did not give it, so this step can't be the best."
        there = ", ".join(figures) or "none"
        raise RunError(
            f"train.metric_for_best_model={metric}: the evaluation at step {step} gave no such metric; it gave: "
            f"{there}.{did_you_mean(metric, figures)} Where its evaluator failed, the warning above says why."
        )
    if not math.isfinite(figures[metric]):
        return f"it is {figures[metric]}, so this step can't be the best."
    return None


@dataclass(frozen=True)
class TrainingEnd:
    """How training ended, and from which step the model's weights are.

    Attributes:
        steps: Optimizer steps done.
        kept: The step of the weights.
        figures: For `result.json`: `steps`; with `train.metric_for_best_model` also `stopped_early` and `best` (`step`,
            `metric`, `value`).
        lines: For the terminal and the report, without full stops; may be empty.
    """

    steps: int
    kept: int
    figures: dict[str, Any]
    lines: list[str]

    @classmethod
    def of(cls, train: TrainConfig, state: Any) -> TrainingEnd:
        """From the trainer's state after training."""
        steps, best, metric = state.global_step, state.best_global_step, train.metric_for_best_model
        figures: dict[str, Any] = {"steps": steps}
        if metric is None:
            return cls(steps, steps, figures, [])
        lines = []
        figures["stopped_early"] = train.early_stopping_patience is not None and steps < state.max_steps
        if figures["stopped_early"]:
            lines.append(
                f"Training stopped early, after {steps} of {state.max_steps} steps: {train.early_stopping_patience} "
                f"evaluations in a row brought no better {metric}"
            )
        if best is None:
            lines.append(f"No evaluation gave a number as {metric}: the weights are those of the last step")
            return cls(steps, steps, figures, lines)
        figures["best"] = {"step": best, "metric": metric, "value": state.best_metric}
        lines.append(f"The weights are those of step {best} of {steps}, the best by {metric} ({state.best_metric:.4g})")
        return cls(steps, best, figures, lines)
