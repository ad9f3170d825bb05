"""`train.profile`: where the time of some steps goes, as a trace that can be looked at and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from gemma_tune.run.paths import atomic_folder

_WARM_UP, _STEPS, _MOST = 3, 10, 30  # steps before, steps that are profiled, operations of the table
FOLDER, _TRACE, _TABLE = "profile", "trace.json.gz", "operations.txt"


class Profile(TrainerCallback):  # type: ignore[misc]
    """Profiles ten steps after the first three, or what there is of them, in the first process.

    Args:
        folder: Where the trace and the table go.

    Attributes:
        lines: What to say of it when it has been written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._profiler: Any = None
        self._begin = self._done = 0
        self.lines: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        left = state.max_steps - state.global_step
        self._begin = state.global_step + min(_WARM_UP, max(0, left - 1))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._begin and state.is_world_process_zero:
            kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
            self._profiler, self._done = profile(activities=kinds), 0
            self._profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._done += 1
        if self._done == _STEPS:
            self._write()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write()

    def _write(self) -> None:
        if self._profiler is None:
            return
        found, self._profiler = self._profiler, None
        found.stop()
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        with atomic_folder(self._folder) as target:
            target.mkdir()
            found.export_chrome_trace(str(target / _TRACE))
            table = found.key_averages().table(sort_by=by, row_limit=_MOST, max_name_column_width=60)
            (target / _TABLE).write_text(table + "\n", encoding="utf-8")
        first, last = self._begin + 1, self._begin + self._done
        self.lines = [
            f"profile: step {first}{f' to {last}' * (last > first)} in {self._folder / _TRACE} (open it at "
            f"https://ui.perfetto.dev), and the {_MOST} operations that take longest in {self._folder / _TABLE}"
        ]
