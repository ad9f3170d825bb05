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
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gemma_tune.errors import UserError, first_line
from gemma_tune.models.kernels.switch import replace_forward, training_switch

# Kinds of inputs for which one function is compiled anew: one row or several, with and without gradients, the heads of
# queries, keys and values, each layer's first norm. With more than torch's 8 the rest would not be compiled
_KINDS = 64


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
    kinds = {type(part).forward for part in parts}
    compiled = {kind: torch.compile(kind, dynamic=True, backend=backend) for kind in kinds}
    with training_switch(language) as switch:
        cached = _Cached()

        def trains() -> bool:
            return switch.on() and not cached.on

        hook = language.base_model.register_forward_pre_hook(cached.look, with_kwargs=True)
        for part in parts:
            replace_forward(part, compiled[type(part).forward], trains)
        try:
            with torch._dynamo.config.patch(recompile_limit=_KINDS):
                yield
        finally:
            hook.remove()
            for part in parts:
                del part.forward


class _Cached:
    """Whether a forward pass has a cache: generation is never compiled."""

    on = False

    def look(self, text: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """A pre-hook of the model."""
        self.on = bool(given.get("use_cache")) or given.get("past_key_values") is not None
