"""Run by torchrun: counts what torch sends in forward and backward passes of models as accelerate shards them.

Prints a line of JSON for each model: bytes of the buffers by kind of collective, and what the process holds.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from gemma_tune.models.family import FAMILIES

PASSES = 2


class CountedCollectives(TorchDispatchMode):
    """Bytes of each collective's whole buffer, where torch's dispatcher sees it, and of gathered weights at most."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        states = {id(s): s for m in model.modules() if isinstance(m, FSDPModule) for s in [m._get_fsdp_state()]}
        self.groups = [group for state in states.values() for group in state._fsdp_param_groups]
        self.gathered = 0

    def gathered_now(self) -> int:
        """Bytes of the weights that are whole now, or on their way."""
        there = [g for g in self.groups if g.is_unsharded or g._all_gather_result is not None]
        sharded = [p.sharded_param for group in there for p in group.fsdp_params]
        return sum(p.numel() * p.element_size() for p in sharded)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "c10d":
            # (output, input, …) of the gather and the scatter, a list of tensors of the reduction
            whole = {"_allgather_base_": 0, "_reduce_scatter_base_": 1}.get(name)
            tensor = args[0][0] if whole is None else args[whole]
            self.bytes[name] += tensor.numel() * tensor.element_size()
        elif name == "mm":
            self.gathered = max(self.gathered, self.gathered_now())
        return func(*args, **(kwargs or {}))


def passes(model: Any, synchronized: bool = True) -> None:
    """Forward and backward passes of one optimizer step, as the trainer makes them."""
    ids = torch.randint(3, 100, (1, 8))
    for number in range(PASSES):
        if not synchronized and number + 1 < PASSES:
            with model.no_sync():
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        else:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def local(tensors: Any) -> int:
    """Bytes that this process holds of them."""
    own = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in own)


def counted(case: dict[str, Any]) -> dict[str, Any]:
    """One model: its collectives, and what is held of weights, gradients and the optimizer's state."""
    torch.manual_seed(0)
    text = AutoConfig.for_model(case["kind"], **case["text"])
    model = getattr(transformers, FAMILIES[case["kind"]].language_class)(text).float().train()
    layer = type(model.model.layers[0]).__name__
    if case["lora"]:
        targets = list(FAMILIES[case["kind"]].linear_layers)
        model = get_peft_model(model, LoraConfig(r=case["lora"], target_modules=targets))
    if case["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if case["lora"]:
            model.enable_input_require_grads()
    found: Counter[str] = Counter()
    gathered = 0
    if case["strategy"] == "ddp":
        model = DistributedDataParallel(model)

        def hook(_, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations as text
            found["allreduce_"] += bucket.buffer().numel() * bucket.buffer().element_size()
            return allreduce_hook(dist.group.WORLD, bucket)

        model.register_comm_hook(None, hook)
        passes(model, synchronized=False)
    else:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=[layer],
            cpu_ram_efficient_loading=False, reshard_after_forward=case["reshards"],
        )  # fmt: skip
        shape = case.get("mesh")
        mesh = init_device_mesh("cpu", tuple(shape), mesh_dim_names=("dp_replicate", "dp_shard")) if shape else None
        accelerator = SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no", device=torch.device("cpu"),
            is_main_process=dist.get_rank() == 0, torch_device_mesh=mesh,
            parallelism_config=SimpleNamespace(fsdp_dim_names=("dp_replicate", "dp_shard")),
        )  # fmt: skip
        model = fsdp2_prepare_model(accelerator, model)
        with CountedCollectives(model) as mode:
            passes(model)
        found, gathered = mode.bytes, mode.gathered
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    optimizer.step()
    state = [t for one in optimizer.state.values() for key, t in one.items() if key != "step"]
    held = {
        "weights": local(model.parameters()),
        "gradients": local(p.grad for p in trained),
        "optimizer": local(state),
    }
    return {"sent": dict(found), "gathered": gathered, "held": held}


def main() -> None:
    dist.init_process_group("gloo")
    for case in json.loads(sys.argv[1]):
        found = counted(case)
        if dist.get_rank() == 0:
            print(json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
