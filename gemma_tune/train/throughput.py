"""How fast a training is: tokens a second, and model FLOPs utilization (MFU, as in https://arxiv.org/abs/2204.02311)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from gemma_tune.models.estimate.flops import Operations, measured_ceiling


class NoThroughput:
    """Measures nothing."""

    def saw(self, inputs: Any) -> None:
        """Nothing."""

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Nothing."""
        return contextlib.nullcontext()

    def figures(self) -> dict[str, float]:
        """None."""
        return {}


class Throughput(NoThroughput, TrainerCallback):  # type: ignore[misc]
    """Counts tokens and seconds between two lines of metrics.jsonl; of several processes, all of them together.

    The first line's time begins with training, so what is prepared in the first step counts; evaluations and
    checkpoints don't. Tokens are those of the batches, without padding.

    Args:
        accelerator: Sums over the processes.
        operations: Of a token of the model that is trained.
        dtype: In which it computes; the ceiling is measured in it when training begins.
    """

    def __init__(self, accelerator: Accelerator, operations: Operations, dtype: torch.dtype) -> None:
        self._accelerator, self._operations, self._dtype = accelerator, operations, dtype
        self._counted: list[torch.Tensor] = []
        self._begun = self._paused = self._ceiling = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._ceiling = measured_ceiling(self._accelerator.device, self._dtype)
        self._counted, self._paused, self._begun = [], 0.0, time.perf_counter()

    def saw(self, inputs: dict[str, Any]) -> None:
        """Counts a batch: what `attention_mask` holds, else all ids, and what is predicted of it."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        tokens = torch.tensor(ids.numel(), device=ids.device) if mask is None else (mask != 0).sum()
        trained = torch.zeros_like(tokens)
        if "completion_mask" in inputs:
            trained = inputs["completion_mask"][:, 1:].sum()
        elif "labels" in inputs:
            trained = (inputs["labels"][:, 1:] != -100).sum()
        self._counted.append(torch.stack([tokens, trained]).double())  # read where a line is written: no wait before

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it nothing is trained."""
        begun = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begun

    def figures(self) -> dict[str, float]:
        """`tokens_per_second`, `trained_tokens_per_second` and `mfu` since the last call; a collective."""
        if not self._counted:
            return {}
        now = time.perf_counter()
        mine = [now - self._begun - self._paused, self._ceiling]
        counted = torch.cat([torch.stack(self._counted).sum(0), self._counted[0].new_tensor(mine)])
        tokens, trained, seconds, ceiling = self._accelerator.reduce(counted, "sum").tolist()
        seconds /= self._accelerator.num_processes
        self._counted, self._begun, self._paused = [], now, 0.0
        done = tokens * self._operations.of_token + trained * self._operations.of_trained
        return {
            "tokens_per_second": tokens / seconds,
            "trained_tokens_per_second": trained / seconds,
            "mfu": done / seconds / ceiling,
        }
