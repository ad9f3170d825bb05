"""Weights that are spread over processes, gathered tensor by tensor in the main process's memory (FSDP2)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from gemma_tune.models.unwrap import language_part

_ROOM = 1.3  # of the weights' bytes that must be free on a GPU, so that forward passes have room


def blank_copy(model: Any) -> Any:
    """A copy whose weights are on the meta device, for `gathered` to fill: what is spread can't be put together again.

    Args:
        model: A model, or a PeftModel around it, before its weights are spread.
    """
    blanks = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, blanks)


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """The trained weights by name, whole, in the main process; nothing in the others. All processes must call it."""
    return _on_main(model, ignore_frozen_params=True)


def gathered(model: Any, blank: Any, device: torch.device) -> Any:
    """The whole model in the main process: on its device, or in the host's memory where it doesn't fit there.

    All processes must call it. No other one holds more than one whole tensor at a time.

    Args:
        model: Whose weights are spread.
        blank: What `blank_copy` gave before.
        device: The main process's device.

    Returns:
        A model with the same weights, in evaluation mode; None in the other processes.
    """
    weights = _on_main(model)
    if not weights:
        return None
    blank.load_state_dict(weights, assign=True)
    language_part(blank).tie_weights()
    size = sum(p.numel() * p.element_size() for p in blank.parameters())
    fits = device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > _ROOM * size
    return (blank.to(device) if fits else blank).eval()


def _on_main(model: Any, **options: bool) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True, **options)
    return dict(get_model_state_dict(model, options=whole))
