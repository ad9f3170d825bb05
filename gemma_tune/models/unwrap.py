"""The language part inside whatever is around it, and of whose classes it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def language_part(model: Any) -> Any:
    """The model itself, or that inside a PeftModel, with its adapters on."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def stored_tensors(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint stores of a module: its parameters, and the buffers that belong to the checkpoint.

    Gemma 4 has such buffers (`layer_scalar`); walking the parameters alone would lose them. Of tied weights there is
    the first.
    """
    yield from module.named_parameters(recurse=recurse)
    for prefix, part in module.named_modules() if recurse else [("", module)]:
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def plain_name(name: str) -> str:
    """A module's name in the language part, from its name inside of the wrappers that PEFT puts around it."""
    return name.replace(".base_layer", "")


def is_of(module: nn.Module, package: str, name: str) -> bool:
    """Whether a module is of a class of PEFT or bitsandbytes; nothing is, and neither is imported, where none has been.

    Args:
        module: Of a model.
        package: The class's module, by its full name.
        name: The class's name.
    """
    imported = sys.modules.get(package)
    return imported is not None and isinstance(module, getattr(imported, name))
