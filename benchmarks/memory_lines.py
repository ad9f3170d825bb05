"""What a training on a CPU takes of memory, as lines of JSON: when it begins, and at its end.

python benchmarks/memory_lines.py WORDS… trains as `python -m gemma_tune WORDS…` does, and says so besides.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch
from step_lines import write
from transformers import TrainerCallback

from gemma_tune.models.memory import peak_memory_mb, reset_peak

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


class MemoryLines(TrainerCallback):  # type: ignore[misc]
    """Writes MiB: when training begins the peak of `loading`, what the process `holds` and `tensors`; then its `peak`.

    Pages of files are left out: the system takes them back when it needs them, and those of libraries come with the
    first step.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gc.collect()
        loading = peak_memory_mb(_CPU) - resident("File")
        write({"loading": loading, "holds": resident("Anon"), "tensors": tensor_bytes() / 2**20})
        reset_peak(_CPU)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        write({"peak": peak_memory_mb(_CPU) - resident("File"), "steps": state.global_step})


if __name__ == "__main__":
    os.environ["PYTHONSAFEPATH"] = "1"
    from transformers import trainer

    from gemma_tune.cli.main import main

    trainer.DEFAULT_CALLBACKS.append(MemoryLines)
    sys.exit(main())
