"""The stop at a NaN or infinite loss or gradient, with the step and the rows of its batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import xxhash

from gemma_tune.errors import RunError, UserError
from gemma_tune.models.padding import unpad_rows

FindRows = Callable[[list[list[int]]], list[str]]
_NAMED = 20


class NonFiniteLoss(RunError):
    """The loss or the gradient became NaN or infinite."""


class NonFiniteGuard:
    """Remembers the batches of one optimizer step, to name its rows.

    Args:
        find_rows: From rows as token ids to where they stand (file and line).
    """

    def __init__(self, find_rows: FindRows) -> None:
        self._find_rows = find_rows
        self._batches: list[dict[str, Any]] = []
        self._digest = xxhash.xxh3_64()
        self._uncounted: list[Any] = []

    def batches(self) -> str:
        """A digest of all batches since it was last asked for, 8 hex digits."""
        self._count_now()
        found = self._digest.hexdigest()[:8]
        self._digest.reset()
        return found

    def _count(self, values: Any) -> None:
        """Adds values to the digest; tensors at the end of the step, since copying one waits for its GPU."""
        self._uncounted.append(values)

    def _count_now(self) -> None:
        for values in self._uncounted:
            self._digest.update(
                values.cpu().numpy().tobytes() if isinstance(values, torch.Tensor) else repr(values).encode()
            )
        self._uncounted = []

    def begin(self) -> None:
        """A new optimizer step begins."""
        self._count_now()
        self._batches = []

    def saw(self, inputs: dict[str, Any]) -> None:
        """One forward pass of this step.

        Raises:
            RunError: Packed rows come with an attention mask, so they would attend to each other.
        """
        if inputs.get("attention_mask") is not None and inputs.get("position_ids") is not None:
            starts = int((inputs["position_ids"] == 0).sum())
            if starts > len(inputs["input_ids"]):
                raise RunError(
                    f"{starts} packed rows in a batch of {len(inputs['input_ids'])} have an attention mask beside "
                    "their position ids, so they would attend to each other. Leave out the option of train.extra that "
                    "adds it."
                )
        for name in sorted(inputs):
            if isinstance(inputs[name], torch.Tensor) and not inputs[name].is_floating_point():
                self._count(inputs[name])
        kept = ("input_ids", "attention_mask", "position_ids")
        self._batches.append({k: v for k, v in inputs.items() if k in kept and v is not None})

    def rows(self) -> str:
        """The files and lines of this step's rows, in a sentence."""
        try:
            where = self._find_rows([row for batch in self._batches for row in unpad_rows(batch, "input_ids")])
        except UserError as error:  # the files have changed, or the network is gone
            return f"Its rows can't be read again ({error})."
        more = f" and {len(where) - _NAMED} more" if len(where) > _NAMED else ""
        return (
            f"The rows of this step: {', '.join(where[:_NAMED])}{more}." if where else "Its rows were not found again."
        )
