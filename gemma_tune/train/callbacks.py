"""Callbacks: the progress bar, the tracker's lines, and the stop at a loss that is no number."""

from __future__ import annotations

import math
import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from gemma_tune.tracking import Tracker


class Progress(TrainerCallback):
    """A bar with the loss, the rate and the time left; where no terminal is, a line every tenth of the way."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="train",
            unit=" steps",
            dynamic_ncols=terminal,
            mininterval=0.2 if terminal else 10,
            miniters=None if terminal else max(1, state.max_steps // 10),
            ascii=not terminal,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()
        self._bar = None


class Report(TrainerCallback):
    """Hands every logged step to the tracker."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._tracker.log({k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}, state.global_step)


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite."""


class StopAtNonFinite(TrainerCallback):
    """Ends training with an error where the loss or the gradient is no number; going on would only waste time."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise NonFiniteLoss(
                    f"{name} is {value} at step {state.global_step}: lower train.learning_rate, or look at the rows "
                    "of this step; metrics.jsonl holds all steps before."
                )
