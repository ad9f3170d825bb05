"""Lets accelerate do FSDP2 on a CPU, with gloo: of the devices it knows, it passes over the CPU alone, in silence."""

from __future__ import annotations

from typing import Any

import pytest
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from gemma_tune.models.sharded import shard
from gemma_tune.models.unwrap import language_part


def enable() -> None:
    """From here on `parallel=fsdp2` works in this process without a GPU."""
    own = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        own(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    patch = pytest.MonkeyPatch()
    patch.setattr(AcceleratorState, "__init__", init)
    patch.setattr("gemma_tune.models.hardware.can_shard", lambda device: True)
    patch.setattr("gemma_tune.train.sharded_trainer.shard", lambda *given: checked(shard(*given)))


def checked(model: Any) -> Any:
    """A model whose weights are spread: this process has a part of each, the tied ones once, and none is missing."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.is_meta]
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    base = language_part(model)
    if hasattr(base, "lm_head"):
        head, embedding = base.lm_head.weight, base.get_input_embeddings().weight
        assert head is embedding and head.to_local().data_ptr() == embedding.to_local().data_ptr()
    return model
