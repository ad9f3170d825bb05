"""What a training on a CPU takes of memory, as lines of JSON: of the process, and of its tensors alone."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from step_lines import write
from torch.autograd.profiler import profile
from transformers import TrainerCallback, trainer

from gemma_tune.cli.main import main
from gemma_tune.models.estimate.memory import peak_memory_mb, reset_peak
from gemma_tune.models.kernels.allocator import hand_back_freed_memory

_CPU = torch.device("cpu")


def tensor_bytes() -> int:
    """Bytes of all tensors of this process; storages that several of them share count once."""
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device == _CPU:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def resident(kind: str) -> float:
    """MiB of this process's memory now: `Anon`, its own, or `File`, libraries and rows that are mapped from files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"Rss{kind}:")[1].split()[0]) / 1024


def hand_back() -> None:
    """Garbage and freed memory go back to the system, which else counts them as the process's."""
    gc.collect()
    hand_back_freed_memory()


def allocated(profiled: Any) -> float:
    """The most bytes that torch's allocator had given out at once since a profile began."""
    blocks = [(e.start_ns(), e.nbytes()) for e in profiled.kineto_results.events() if e.name() == "[memory]"]
    most = now = 0
    for _, size in sorted(blocks, key=lambda block: block[0]):
        now += size
        most = max(most, now)
    return most


class MemoryLines(TrainerCallback):  # type: ignore[misc]
    """Writes MiB: the `peak` of all steps but the last, the `baseline` after them, and of the last step `tensors`.

    What was freed before training is handed back when it begins: an import's garbage would be taken for baseline, and
    hide as much of what training takes. The baseline is taken after the steps, since libraries set up things of their
    own in the first one. The last step is profiled, which takes memory itself. Pages of files are left out: the system
    takes them back when it needs them.

    Args:
        counts: Whether to count tensors; a step that generates has too many operations for a profile.
    """

    def __init__(self, counts: bool) -> None:
        self._counts = counts
        self._there = 0.0
        self._profile: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        hand_back()
        reset_peak(_CPU)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps - 1:
            peak = peak_memory_mb(_CPU) - resident("File")
            hand_back()
            self._there = tensor_bytes() / 2**20
            write({"peak": peak, "baseline": resident("Anon") - self._there})
            if self._counts:
                self._profile = profile(use_kineto=True, profile_memory=True)
                self._profile.__enter__()
        elif state.global_step == state.max_steps:
            if self._counts:
                self._profile.__exit__(None, None, None)
            write({"tensors": self._there + allocated(self._profile) / 2**20 if self._counts else None})


def train(words: Sequence[str], said: Path, counts: bool) -> None:
    """Trains in this process as `python -m gemma_tune WORDS…` does, and writes what is said to a file.

    Args:
        words: The command line.
        said: The file, for output and errors.
        counts: As in `MemoryLines`.
    """
    with said.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["PYTHONSAFEPATH"] = "1"
    trainer.DEFAULT_CALLBACKS.append(MemoryLines(counts))
    sys.exit(main(words))
