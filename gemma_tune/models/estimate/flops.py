"""Floating-point operations of training: a multiplication and an addition for each weight that a position meets."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from gemma_tune.config import Config
from gemma_tune.models.estimate.size import ModelSize

_EDGE = {"cpu": 1024}  # of the square matrices of `measured_ceiling`; elsewhere 8192
_SECONDS = 0.1


class Operations(NamedTuple):
    """Operations of a step, forward and backward.

    Attributes:
        of_token: For each token.
        of_trained: For each trained one, besides.
    """

    of_token: float
    of_trained: float


def per_weight(cfg: Config) -> float:
    """Of each weight: 2 forward, 2 for the gradient of the activations, and 2 for its own, where it is trained."""
    return 6.0 if cfg.adapter.peft_type == "none" else 4.0


def model_operations(cfg: Config, size: ModelSize) -> Operations:
    """What training has to compute at the least, whatever is computed besides: "model FLOPs", as in MFU.

    The head, and layers that share keys and values, are needed at trained positions alone. A teacher that is asked at
    every step is one more forward pass. Left out are what is computed again (gradient_checkpointing), the products
    inside of attention, adapters, towers, and KTO's pass for its KL: some percent at 1,024 tokens of text.
    """
    each = per_weight(cfg) + (2.0 if cfg.traits.quantizes and cfg.quant.teacher == "live" else 0.0)
    head = size.vocab_size * size.hidden_size
    at_trained = size.shared_layer_parameters + (0 if cfg.traits.classifies else head)
    return Operations(each * (size.computed_parameters - size.shared_layer_parameters - head), each * at_trained)


def measured_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest product of large square matrices in a type, measured for 0.1 s.

    On a CPU the matrices have 1,024 rows, elsewhere 8,192; the type is that in which the model computes, and torch's
    settings (threads, TF32) are those of the run. No random state is used.
    """
    edge = _EDGE.get(device.type, 8192)
    draw = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(edge, edge, generator=draw, device=device).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + _SECONDS
    torch.mm(a, b)  # chooses a kernel
    while not best or time.perf_counter() < end:
        _wait(device)
        begun = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = max(best, 2 * edge**3 / (time.perf_counter() - begun))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
