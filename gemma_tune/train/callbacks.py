"""Callbacks: progress bar and tracker."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from gemma_tune.run.stopping import Stops
from gemma_tune.run.tracking import Tracker


class ProgressBar(TrainerCallback):
    """A bar with the loss, both rates and the time left; without a terminal, a line every 10 % of the steps.

    Tokens are those that TRL's trainers count (`num_tokens`): of all processes, and of prompts, too, without padding.
    Both rates are of the whole time since training began here, evaluations included.

    Args:
        counted_tokens: What the trainer has counted up to now. A resumed one goes on from its checkpoint's number.
    """

    def __init__(self, counted_tokens: Callable[[], int]) -> None:
        self._counted_tokens = counted_tokens
        self._bar: Any = None
        self._loss = self._tokens = ""
        self._peak_rate = 0.0
        self._due = False  # a line for this step, where there is no terminal

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # disable=None: no bar where stderr is no terminal
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="train",
            unit=" steps",
            dynamic_ncols=True,
            disable=None,
        )
        self._begin, self._first = time.monotonic(), state.global_step
        self._tokens_before = self._counted_tokens()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self._peak_rate = max(self._peak_rate, *(group["lr"] for group in optimizer.param_groups))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= state.global_step >= state.max_steps  # the last step's loss, whatever logging_steps is
        if not self._bar.disable:
            self._bar.update(state.global_step - self._bar.n)
            return
        done, total = state.global_step, state.max_steps
        self._due = done == total or done * 10 // total > (done - 1) * 10 // total
        if not control.should_log:  # else the line waits for this step's loss, which is logged after all callbacks
            self._print_line(state)

    def _print_line(self, state: Any) -> None:
        done, total = state.global_step, state.max_steps
        if self._due:
            self._due = False
            rate = (done - self._first) / (time.monotonic() - self._begin)
            left = tqdm.format_interval((total - done) / rate)
            print(
                f"train: {done}/{total} steps, {rate:.2f} steps/s{self._tokens}, {left} left{self._loss}",
                file=sys.stderr,
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._loss = f", loss {logs['loss']:.4f}"
            if self._bar is None:
                return
            if (seen := logs.get("num_tokens", 0) - self._tokens_before) > 0:
                self._tokens = f", {seen / (time.monotonic() - self._begin):,.0f} tokens/s"
            self._bar.set_postfix_str(f"{self._tokens}{self._loss}".removeprefix(", "))
            self._print_line(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()
        if self._peak_rate == 0.0 and state.global_step > self._first:
            print(
                "Every step was warm-up at a learning rate of 0, so nothing was trained: set train.warmup_steps=0, or "
                "train longer.",
                file=sys.stderr,
            )


class StopCallback(TrainerCallback):
    """Ends training after a step where the run is asked to end or its time is up: with a checkpoint to resume from.

    Args:
        stops: Whether the run is asked to end.
        max_time: Seconds that the run may take, or None.
        period: Training can be resumed exactly only at multiples of this many steps; it goes on to the next.

    Attributes:
        ends: Whether it has ended training, with a checkpoint; else training has come to its own end.
    """

    def __init__(self, stops: Stops, max_time: float | None, period: int) -> None:
        self._stops, self._max_time, self._period = stops, max_time, period
        self.ends = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stops.over_time(self._max_time)
        self._stops.agree()
        whole = state.global_step % self._period == 0 or state.global_step >= state.max_steps
        self.ends = self._stops.asked is not None and whole
        control.should_save |= self.ends
        # The mean since the last logged step is not in a checkpoint: a resumed run would begin another one
        may_save = control.should_evaluate and args.metric_for_best_model is not None
        control.should_log |= control.should_save or may_save

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not before: a checkpoint that says so counts as the end of training
        control.should_training_stop |= self.ends


class FailuresCallback(TrainerCallback):
    """Keeps what could not be measured at a step before the checkpoint of this step is written.

    Args:
        passed_over: Why steps could not become the best one; the trainer adds to it.
        keep: Writes it into the run folder.
    """

    def __init__(self, passed_over: Mapping[str, str], keep: Callable[[Mapping[str, str]], None]) -> None:
        self._passed_over, self._keep = passed_over, keep

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._keep(self._passed_over)


class TrackerCallback(TrainerCallback):
    """Passes every logged step to the tracker."""

    def __init__(self, tracker: Tracker, stops: Stops) -> None:
        self._tracker, self._stops = tracker, stops

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "train_loss" in logs and (self._stops.asked is not None or self._tracker.summed):
            return  # the sums of a part of a run, which the resumed one gives; or they stand there already
        figures = {k: v for k, v in logs.items() if isinstance(v, int | float) or k == "batch"}
        self._tracker.log(figures, state.global_step)
