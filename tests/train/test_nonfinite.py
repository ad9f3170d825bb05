"""The look for NaN waits for the device once per optimizer step, and names the first bad loss of its micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Trainer

from gemma_tune.train.base import GemmaTrainer
from gemma_tune.train.nonfinite import NonFiniteGuard


class Steps(Trainer):  # type: ignore[misc]
    """Stands where TRL's trainer does: gives losses and a norm."""

    loss = torch.empty((), device="meta")  # whose number can't be read

    def training_step(self, model: Any, inputs: Any) -> torch.Tensor:
        return self.loss

    def _get_grad_norm(self, model: Any, grad_norm: Any) -> torch.Tensor:
        return torch.tensor(1.0)


class Ours(GemmaTrainer, Steps):  # type: ignore[misc]
    def __init__(self) -> None:
        self.model, self._guard = torch.nn.Linear(1, 1), NonFiniteGuard(lambda rows: [])
        self._losses, self._not_finite = [], {}

    def _stop(self) -> None:
        raise ArithmeticError(self._not_finite)


def test_no_number_is_read_in_a_micro_batch() -> None:
    trainer = Ours()
    for _ in range(2):
        trainer.training_step(None, {"input_ids": torch.empty((2, 3), dtype=torch.long, device="meta")})


@pytest.mark.parametrize(("losses", "said"), [([1.0, 2.0], None), ([1.0, float("inf"), float("nan")], "inf")])
def test_the_first_bad_loss_of_a_step_is_named(losses: list[float], said: str | None) -> None:
    trainer = Ours()
    for value in losses:
        trainer.loss = torch.tensor([value]) if value == 1 else torch.tensor(value)
        trainer.training_step(None, {"input_ids": torch.tensor([[2, 5]])})
    if said is None:
        assert trainer._get_grad_norm(None) == 1 and not trainer._losses
    else:
        with pytest.raises(ArithmeticError, match=f"'loss': {said}"):
            trainer._get_grad_norm(None)


def test_the_digest_of_batches_does_not_depend_on_when_it_is_taken() -> None:
    digests = []
    for at_once in (True, False):
        guard = NonFiniteGuard(lambda rows: [])
        for token in (5, 6):
            guard.saw({"input_ids": torch.tensor([[2, token]]), "labels": torch.tensor([[-100, token]])})
            if at_once:
                guard.begin()
        digests.append(guard.batches())
    assert digests[0] == digests[1] != NonFiniteGuard(lambda rows: []).batches()
