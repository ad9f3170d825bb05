"""Leaves the model and the random generators as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from gemma_tune.models.family import NARROW


@contextlib.contextmanager
def training_attention(model: Any, asked: str | None) -> Iterator[None]:
    """Eager attention for a narrow model while it is trained, where no kernel was asked for.

    At width 256, rows of 270 tokens and batches of 4 a step takes 0.24 s in place of 0.29 on two cores; answers come
    faster with SDPA.
    """
    default = model.config._attn_implementation
    eager = asked is None and model.config.hidden_size < NARROW
    if eager:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if eager:
            model.set_attn_implementation(default)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; training mode and random state come back afterwards."""
    was_training = model.training
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        model.train(was_training)
