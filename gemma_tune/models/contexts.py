"""Context managers that change the model or the random state, and restore it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from gemma_tune.config import Config
from gemma_tune.models.family import BY_DOCUMENT
from gemma_tune.models.kernels.allocator import keep_freed_memory
from gemma_tune.models.kernels.compiled_parts import compiled_parts
from gemma_tune.models.kernels.document_attention import by_document, has_documents
from gemma_tune.models.kernels.switch import plain_passes
from gemma_tune.models.kernels.training_layers import training_layers
from gemma_tune.models.sharded import reshard
from gemma_tune.models.unwrap import language_part


@contextlib.contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Uses another attention implementation; the model's own is restored afterwards."""
    own = model.config._attn_implementation
    if name == own:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@contextlib.contextmanager
def training_attention(model: Any, asked: str | None, reference: Any = None) -> Iterator[None]:
    """The attention that training is fastest with, unless a kernel was asked for: by document on a CPU.

    Args:
        model: The language part.
        asked: `model.attn_implementation`.
        reference: A second model that its log-probabilities are compared with, which must attend likewise.
    """
    with contextlib.ExitStack() as both:
        for one in (model, *([language_part(reference)] if reference is not None else ())):
            on_cpu = one.get_input_embeddings().weight.device.type == "cpu"
            if asked == BY_DOCUMENT or (asked is None and on_cpu and has_documents(one)):
                both.enter_context(by_document(one))
        yield


@contextlib.contextmanager
def training_kernels(model: Any, cfg: Config, reference: Any = None) -> Iterator[None]:
    """What a run trains with on a CPU, unless something else was asked for: `training_attention`, norms and adapted
    layers in fewer passes (`training_layers`, or compiled, where that was asked for), and the memory of a step kept for
    the next one, from then on.

    Args:
        model: The language part.
        cfg: Says what was asked for.
        reference: As in `training_attention`.
    """
    keeps = cfg.train.keep_freed_memory
    if model.get_input_embeddings().weight.device.type == "cpu" if keeps is None else keeps:
        keep_freed_memory()
    both = (model, *([language_part(reference)] if reference is not None else ()))
    with training_attention(model, cfg.model.attn_implementation, reference), contextlib.ExitStack() as layers:
        for one in both:
            if cfg.train.torch_compile:
                layers.enter_context(compiled_parts(one))
            else:
                layers.enter_context(training_layers(one, cfg.model.fused_layers, cfg.model.keep_decoded))
        yield


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; each module's mode and the random state are restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), same_random_state():
            yield
    finally:
        for module in training:
            module.training = True
        reshard(model)


@contextlib.contextmanager
def same_random_state() -> Iterator[None]:
    """Restores the states of Python's, NumPy's and torch's random generators afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Uses the model's own forward pass: nothing compiled or fused, and no mixed precision of accelerate's."""
    own, mixed = (vars(model).get(name) for name in ("_original_forward", "forward"))
    with plain_passes(language_part(model)):
        if own is None or mixed is None:
            yield
            return
        model.forward = own
        try:
            yield
        finally:
            model.forward = mixed
