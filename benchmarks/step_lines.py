"""What a training says of each of its steps, as lines of JSON: when it ended, its loss, and what one step computes.

python benchmarks/step_lines.py WORDS… trains as `python -m gemma_tune WORDS…` does, and says so besides.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

COUNTED = 2  # the step whose operations are counted; it is slower for it, and stands before the steady state
_SAID = ("loss", "num_tokens", "trained_tokens_per_second", "tokens_per_second", "mfu", "train_runtime")


def _forward(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 4 * int(q[0] * q[1] * q[2] * k[2] * q[3])  # two products of [B, h, Q, K] with the head's size


def _backward(above: Any, q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 10 * int(q[0] * q[1] * q[2] * k[2] * q[3])  # five of them, as torch counts its kernels for GPUs


# torch counts its attention kernels for GPUs only
ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def counter() -> FlopCounterMode:
    """Counts operations, a multiplication and an addition each, of SDPA on a CPU, too: whole, whatever its mask."""
    return FlopCounterMode(display=False, custom_mapping=ON_CPU)


class StepLines(TrainerCallback):  # type: ignore[misc]
    """Writes `{"step", "at"}` at the end of each step, its logged figures, `{"flops"}` of one step and the memory."""

    def __init__(self) -> None:
        self._counter: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == COUNTED:
            self._counter = counter()
            self._counter.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        line = {"step": state.global_step, "at": time.time()}
        if state.global_step == COUNTED:
            self._counter.__exit__(None, None, None)
            line["flops"] = self._counter.get_total_flops()
        write(line)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        write({"step": state.global_step} | {name: (logs or {})[name] for name in _SAID if name in (logs or {})})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            write({"gpu_memory": torch.cuda.max_memory_allocated() / 2**20})


def write(line: dict[str, Any]) -> None:
    """One line, at once."""
    print(json.dumps(line), file=sys.__stdout__, flush=True)


def lines_of(said: str) -> list[dict[str, Any]]:
    """The whole lines of JSON in what a run wrote; TRL and our terminal write others."""
    return [json.loads(line) for line in said.splitlines(keepends=True) if line.startswith('{"') and line[-1] == "\n"]


if __name__ == "__main__":
    os.environ["PYTHONSAFEPATH"] = "1"
    from transformers import trainer

    from gemma_tune.cli.main import main

    trainer.DEFAULT_CALLBACKS.append(StepLines)
    sys.exit(main())
