"""Whether a forward pass is one of training: what kernels for training ask, since an evaluation between two steps is to
give the numbers of one before or after training."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

_NAME = "training_switch"  # of an attribute of a language part


class TrainingSwitch:
    """Whether kernels for training are on: while nothing holds them off.

    Attributes:
        held: Whether an evaluation runs.
    """

    def __init__(self) -> None:
        self.held = False

    def on(self) -> bool:
        """Whether passes are those of training."""
        return not self.held


@contextlib.contextmanager
def training_switch(language: Any) -> Iterator[TrainingSwitch]:
    """The switch of a language part's kernels, while it trains."""
    switch = vars(language)[_NAME] = TrainingSwitch()
    try:
        yield switch
    finally:
        del vars(language)[_NAME]


@contextlib.contextmanager
def plain_passes(language: Any) -> Iterator[None]:
    """Within it, passes of a language part are Transformers' own, as for an evaluation during training."""
    switch = vars(language).get(_NAME)
    if switch is None:
        yield
        return
    switch.held = True
    try:
        yield
    finally:
        switch.held = False


def replace_forward(module: Any, ours: Callable[..., Any], trains: Callable[[], bool]) -> None:
    """Gives one module a forward pass, called with the module, for as long as it trains; else it has its class's.

    It is a method, so that a copy of the module, as PEFT makes one for a reference, computes with the weights of the
    copy; `del module.forward` takes it back.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (ours if trains() else type(self).forward)(self, *args, **kwargs)

    module.forward = types.MethodType(forward, module)
