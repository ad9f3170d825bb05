"""Norms and feed-forward blocks of a model's layers, compiled by `torch.compile` while it is trained.

They pass over memory many times: a norm is seven operations in float32, of which a compiled one makes two loops. All
that differs from layer to layer or pass to pass stays outside: attention and its masks, caches, keys and values that
layers share, hooks. So all layers use the same few compiled functions, for any number of rows and tokens; compiling
whole layers gains little more and takes nearly four times as long (docs/speed.md).

Losses differ from those of plain passes by rounding (in bfloat16 a chain of operations is rounded once, at its end),
and dropout within a compiled block draws other numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from gemma_tune.errors import UserError, first_line

_SWITCH = "compiled_parts"  # name of an attribute of a language part
# Kinds of inputs for which one function is compiled anew: one row or several, with and without gradients, the heads of
# queries, keys and values, each layer's first norm. With more than torch's 8 the rest would not be compiled
_KINDS = 64


class _Switch:
    """Whether a forward pass is one of training; `held` while it is not whatever the pass looks like."""

    def __init__(self) -> None:
        self.on = self.held = False

    def look(self, text: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """A pre-hook of the model: generation, with its cache, is never compiled."""
        self.on = not (self.held or given.get("use_cache") or given.get("past_key_values") is not None)


def check_compiler(device: torch.device) -> str | None:
    """Compiles something small: what is wrong where that fails, else None."""
    try:
        torch.compile(nn.functional.gelu, dynamic=True)(torch.ones(3, 5, device=device))
    except Exception as error:
        needs = "a C++ compiler (Debian, Ubuntu: apt install g++)"
        if device.type != "cpu":
            needs = "Triton (pip install triton), a C compiler and Python's headers (apt install gcc python3-dev)"
        return (
            f"train.torch_compile=true: torch can't compile here ({first_line(error)}). It needs {needs}; or leave it "
            "out."
        )
    return None


def parts_of(language: Any) -> list[nn.Module]:
    """What is compiled of a language part: the norms and the feed-forward block of each layer, with its adapters."""
    blocks = language.base_model.layers.modules()
    return [m for m in blocks if type(m).__name__.endswith(("RMSNorm", "MLP")) and "forward" not in vars(m)]


@contextlib.contextmanager
def compiled_parts(language: Any, backend: Any = "inductor") -> Iterator[None]:
    """Within it, passes of a language part without a cache use compiled norms and feed-forward blocks.

    Args:
        language: The language part.
        backend: Of `torch.compile`.

    Raises:
        UserError: It has none that can be compiled.
    """
    parts = parts_of(language)
    if not parts:
        raise UserError("train.torch_compile=true: nothing of this model can be compiled; leave it out.")
    switch = _Switch()
    vars(language)[_SWITCH] = switch
    hook = language.base_model.register_forward_pre_hook(switch.look, with_kwargs=True)
    for part in parts:
        compiled = torch.compile(part.forward, dynamic=True, backend=backend)
        part.forward = _either(switch, compiled, part.forward)
    try:
        with torch._dynamo.config.patch(recompile_limit=_KINDS):
            yield
    finally:
        hook.remove()
        del vars(language)[_SWITCH]
        for part in parts:
            del part.forward


def _either(switch: _Switch, compiled: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if switch.on else plain)(*args, **kwargs)

    return forward


@contextlib.contextmanager
def plain_parts(language: Any) -> Iterator[None]:
    """Within it, `compiled_parts` is off, as for an evaluation during training."""
    switch = vars(language).get(_SWITCH)
    if switch is None:
        yield
        return
    switch.held = True
    try:
        yield
    finally:
        switch.held = False
