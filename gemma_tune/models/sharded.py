"""FSDP2: weights of which each process holds a part, loaded so that no process needs memory for all of them on its GPU.

accelerate decides which layers are groups, and in which types they compute (`fsdp2_prepare_model`). Its own way to hand
out weights that only one process has read (`cpu_ram_efficient_loading`) fails for buffers in the state dict, which
Gemma 4 has, so torch's takes its place.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gemma_tune.config import Config
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.sharding import shards
from gemma_tune.models.unwrap import language_part
from gemma_tune.processes import is_main_process

_NONE, _ALL, _EMPTY = "none", "all", "empty"
_loading: ContextVar[str] = ContextVar("loading", default=_NONE)


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are spread over processes, so that all must do the same forward passes."""
    return bool(_groups(model))


def _groups(model: Any) -> list[Any]:
    """The modules whose weights FSDP gathers together; none, and nothing is imported, with one process."""
    if not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def loading_to_shard(cfg: Config) -> Iterator[None]:
    """Within it, weights that processes will share are loaded into the host's memory, by the main process alone.

    Those of the other processes have no numbers; they take no memory, since nothing writes to them.
    """
    if not shards(cfg):
        yield
        return
    token = _loading.set(_ALL if is_main_process() or not cfg.parallel.cpu_ram_efficient_loading else _EMPTY)
    # Transformers reads these, and reads no file where it is told that FSDP hands out the weights
    said = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    before = {name: os.environ.get(name) for name in said}
    if cfg.parallel.cpu_ram_efficient_loading:
        os.environ.update(said)
    try:
        yield
    finally:
        _loading.reset(token)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def loads_to_shard() -> bool:
    """Whether what is loaded now will be spread over processes: it stays in the host's memory until then."""
    return _loading.get() != _NONE


def loads_no_numbers() -> bool:
    """Whether this process gets its weights' numbers from another one later."""
    return _loading.get() == _EMPTY


def shard(accelerator: Any, model: Any) -> Any:
    """Spreads the weights over the processes, in place; the main process's numbers are everybody's.

    Args:
        accelerator: With accelerate's plugin for FSDP2.
        model: In the host's memory. Its weights that are trained become float32 where it computes in mixed precision.

    Returns:
        The model, in training as in `generate` with what FSDP needs.
    """
    import torch.distributed as dist
    from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    plugin, base = accelerator.state.fsdp_plugin, language_part(model)
    plugin.transformer_cls_names_to_wrap = [FAMILIES[base.config.model_type].layer_class]
    plugin.set_auto_wrap_policy(model)
    if accelerator.mixed_precision != "no":
        # accelerate's policy rounds what the whole model gives, the loss, too
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if plugin.activation_checkpointing:
        model = fsdp2_apply_ac(accelerator, model)
    numbers = {}
    if accelerator.is_main_process:
        numbers = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    beside = _not_stored(model)  # the same on all: computed from the configuration
    model = model.to(torch.device("meta"))
    base.tie_weights()
    model = fsdp2_prepare_model(accelerator, model)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`_get_pg_default_device`")  # torch calls it itself
        set_model_state_dict(model, numbers, options=options)
    for owner, name, tensor in beside:
        owner.register_buffer(name, tensor.to(accelerator.device), persistent=False)
    base.tie_weights()
    if hasattr(model, "generate"):  # a classifier has none
        dist.fsdp.register_fsdp_forward_method(model, "generate")
    return model


def _not_stored(model: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Buffers that no state dict holds: whose they are, their names, and their numbers."""
    return [
        (module, name, module._buffers[name].detach().clone())
        for module in model.modules()
        for name in module._non_persistent_buffers_set
        if module._buffers.get(name) is not None
    ]


def reshard(model: Any) -> None:
    """Frees gathered weights, which FSDP keeps of some groups until a backward pass; where there are none, nothing."""
    for group in _groups(model):
        group.reshard()


def whole_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight as a plain tensor; gathered, which all processes must do at once, where it is spread over them."""
    full = getattr(weight, "full_tensor", None)
    return weight if full is None else full()
