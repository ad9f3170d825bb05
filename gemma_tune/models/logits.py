"""Logits of a model on a few rows, in float32 whatever its weights are stored in, to compare two models with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn import functional

from gemma_tune.models.contexts import evaluating
from gemma_tune.models.four_bit import is_four_bit
from gemma_tune.models.four_bit_weights import weight_of
from gemma_tune.models.head import head_of
from gemma_tune.models.unwrap import language_part

# Positions whose logits stand in memory at once: 64 MiB at Gemma's vocabulary.
POSITIONS_AT_ONCE = 64


def states_of(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Hidden states after each token of each row, [T, H] of all rows, computed as one batch.

    What follows a token doesn't change its state, so shorter rows are filled up with any token.
    """
    base, width = language_part(model), max(map(len, rows))
    ids = torch.tensor([[*row, *row[-1:] * (width - len(row))] for row in map(list, rows)])
    with evaluating(model):
        states = base.model(input_ids=ids.to(base.get_input_embeddings().weight.device), use_cache=False)
    return torch.cat([state[: len(row)] for state, row in zip(states.last_hidden_state, rows, strict=True)])


def logits_of(model: Any, states: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits of hidden states, float32, some positions at a time, [T, V]: those of 512 tokens would be 512 MiB.

    Of a classifier they are the scores, [T, 1].
    """
    base = language_part(model)
    head = head_of(base) if hasattr(base, "lm_head") else base.score
    for part in states.split(POSITIONS_AT_ONCE):
        with evaluating(model):
            logits = head(part)
        yield logits
        del logits  # before the next ones are computed


@contextlib.contextmanager
def float32_layers(model: nn.Module) -> Iterator[None]:
    """Within it, each layer computes in float32; it holds its weights in float32 only while it runs.

    A 4-bit layer multiplies with its weight as it is dequantized to the model's own type: bitsandbytes' kernel would
    dequantize to float32, and give other numbers than in training.
    """
    kept: dict[int, torch.Tensor] = {}
    hooks = []
    for module, parameters in _layers(model):

        def widen(_: Any, __: Any, own: list[nn.Parameter] = parameters) -> None:
            for parameter in own:
                kept[id(parameter)] = parameter.data
                parameter.data = parameter.data.float()

        def narrow(_: Any, __: Any, ___: Any, own: list[nn.Parameter] = parameters) -> None:
            for parameter in own:
                if id(parameter) in kept:
                    parameter.data = kept.pop(id(parameter))

        if parameters:
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(narrow, always_call=True))
    hooks += [m.register_forward_hook(_dequantized) for m in model.modules() if is_four_bit(m)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _dequantized(layer: Any, inputs: tuple[torch.Tensor, ...], _: Any) -> torch.Tensor:
    return functional.linear(inputs[0], weight_of(layer).to(inputs[0].device))


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Modules that use weights, each with those to convert; an adapter's layer reads the weight inside it directly."""
    inside = "\0"
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        whole = isinstance(module, LoraLayer | AuxiliaryTrainingWrapper)
        inside = f"{name}." if whole else inside
        found = module.parameters() if whole else module.parameters(recurse=False)
        yield module, [p for p in found if p.dtype in (torch.bfloat16, torch.float16)]
