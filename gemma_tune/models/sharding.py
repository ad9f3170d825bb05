"""Which part of the model, its gradients and its optimizer's state each process of a training holds.

Under DDP each process holds all of it. FSDP2 as accelerate sets it up makes a group of each decoder layer, and one of
what is outside of them (embeddings, final norm, head): each process holds a shard of every group, and gathers a group
where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemma_tune.config import Config

if TYPE_CHECKING:
    from gemma_tune.models.estimate.size import ModelSize

# What accelerate's gradient accumulation is given under FSDP2. By default it keeps the gradients of all but the last
# forward pass of a step whole on every process; the estimate counts them as shards.
ACCUMULATION = {"sync_each_batch": True}
# Decoder layers whose weights are there at once: the one in use, and the one that is gathered meanwhile.
LAYERS_AT_ONCE = 2


@dataclass(frozen=True)
class Sharding:
    """How the processes of a training share a model.

    Attributes:
        processes: On all machines.
        machines: Machines.
        shards: Processes that hold one copy of the model together; 1: each process has a whole one.
        reshards: Whether a layer's gathered weights are freed after its forward pass, and gathered again for the
            backward pass.
    """

    processes: int = 1
    machines: int = 1
    shards: int = 1
    reshards: bool = True

    @property
    def per_machine(self) -> int:
        """Processes on each machine."""
        return self.processes // self.machines

    @property
    def copies(self) -> int:
        """Copies of the model that there are in all."""
        return self.processes // self.shards


def sharding_of(cfg: Config) -> Sharding:
    """How the processes of a configuration share its model; `launch` of a method without processes is left null."""
    machines, processes, parallel = cfg.launch.num_nodes or 1, cfg.processes, cfg.parallel
    if parallel.strategy != "fsdp2" or processes == 1:
        return Sharding(processes, machines)
    within = parallel.shard_within_node
    if within is None:
        within = 1 < machines < processes
    shards = processes // machines if within else processes
    return Sharding(processes, machines, shards, parallel.reshard_after_forward)


def shards(cfg: Config) -> bool:
    """Whether the processes share the weights of this training."""
    return sharding_of(cfg).shards > 1


def recomputes(cfg: Config) -> bool:
    """Whether a layer's activations are computed again in the backward pass, by either of the two options for it."""
    return cfg.train.gradient_checkpointing or (cfg.parallel.activation_checkpointing and sharding_of(cfg).shards > 1)


def gathered_at_once(size: ModelSize, sharding: Sharding) -> int:
    """Weights that are whole at once on a process under FSDP2: what is outside of the layers, and two layers of them.

    With the experts of a layer all of them are gathered, whichever are at work, and of Gemma 3n and Gemma 4 E the
    per-layer embeddings, since they belong to no layer.
    """
    if not sharding.reshards:
        return size.parameters
    return min(size.outer_parameters + LAYERS_AT_ONCE * size.layer_parameters, size.parameters)
