"""The best step by a figure of the evaluations while training: kept, loaded at the end; and the stop without better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from gemma_tune.config import TrainConfig
from gemma_tune.config.eval import lower_is_better
from gemma_tune.errors import RunError
from gemma_tune.validation.suggest import did_you_mean


def greater_is_better(train: TrainConfig) -> bool:
    """Whether a greater figure is better: as it is set, else by the figure's name."""
    if train.greater_is_better is not None:
        return train.greater_is_better
    return not lower_is_better(str(train.metric_for_best_model))


def best_arguments(train: TrainConfig) -> dict[str, Any]:
    """What Transformers' trainer has to know to keep the best step and to load it at the end."""
    if train.metric_for_best_model is None:
        return {}
    return {
        # The prefix that the trainer gives to every figure; without it Transformers takes a name's own `eval_` for it.
        "metric_for_best_model": f"eval_{train.metric_for_best_model}",
        "greater_is_better": greater_is_better(train),
        "load_best_model_at_end": True,
        "save_strategy": "best",  # `SaveSteps` does the rest
        "restore_callback_states_from_checkpoint": train.early_stopping_patience is not None,
    }


def best_callbacks(train: TrainConfig) -> list[TrainerCallback]:
    """For checkpoints beside the best ones, and for the early stop."""
    if train.metric_for_best_model is None:
        return []
    found: list[TrainerCallback] = [SaveSteps(train.save_steps)]
    if train.early_stopping_patience is not None:
        found.append(EarlyStoppingCallback(train.early_stopping_patience, train.early_stopping_threshold))
    return found


class SaveSteps(TrainerCallback):
    """Checkpoints every `save_steps` steps and at the end: Transformers leaves them out where it saves the best ones.

    Args:
        save_steps: Steps between two of these checkpoints, or None for none.
    """

    def __init__(self, save_steps: int | None) -> None:
        self._save_steps = save_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._save_steps:
            control.should_save |= state.global_step % self._save_steps == 0 or state.global_step >= state.max_steps


def why_not_best(metric: str, figures: Mapping[str, float], step: int, known: bool) -> str | None:
    """Why a step can't be the best one, whatever its weights are worth; None where it can.

    Args:
        metric: The figure that decides.
        figures: Those of this step.
        step: Optimizer steps done.
        known: Whether an earlier evaluation gave the figure.

    Raises:
        RunError: No evaluation has given it so far.
    """
    if metric not in figures:
        if known:
            return "the evaluation did not give it, so this step can't be the best."
        there = ", ".join(figures) or "none"
        raise RunError(
            f"train.metric_for_best_model={metric}: the evaluation at step {step} gave no such figure; it gave: "
            f"{there}.{did_you_mean(metric, figures)} Where its evaluator failed, the warning above says why."
        )
    if not math.isfinite(figures[metric]):
        return f"it is {figures[metric]}, so this step can't be the best."
    return None


@dataclass(frozen=True)
class TrainingEnd:
    """How a training ended, and whose step's weights the model has now.

    Attributes:
        steps: Optimizer steps done.
        kept: The step that the weights are of.
        figures: For `result.json`: `steps`; where a figure decides, `stopped_early` and `best` (`step`, `metric`,
            `value`).
        lines: For people, without full stops; none where there is nothing to say.
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
