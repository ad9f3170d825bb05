"""`parallel=…`: how several processes share one training."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option

# What others offer and this version refuses, with the reason (validation/processes.py)
UNSUPPORTED = ("zero2", "zero3", "ulysses", "context_parallel")


@dataclass
class ParallelConfig:
    """DDP keeps a whole copy of the model in each process; FSDP2 a part, and gathers each layer when it is used."""

    strategy: str = option(
        "ddp",
        "ddp: every recipe, any adapter, 4-bit bases. fsdp2: full tuning and adapters on 16-bit bases that don't fit "
        "one GPU. It has no effect with one process.",
        choices=("ddp", "fsdp2", *UNSUPPORTED),
    )
    shard_within_node: bool | None = option(
        None,
        "fsdp2: share the model among the GPUs of a machine, with a copy on each machine, so that layers are not "
        "gathered over the network; null: with several machines.",
    )
    reshard_after_forward: bool = option(
        True, "fsdp2: free a layer's gathered weights after its forward pass; false: faster, more memory."
    )
    activation_checkpointing: bool = option(
        False,
        "fsdp2: compute each layer's activations again in the backward pass; instead of train.gradient_checkpointing.",
    )
    cpu_ram_efficient_loading: bool = option(
        True, "fsdp2: only the first process of all reads the weights, and the others take their parts from it."
    )
