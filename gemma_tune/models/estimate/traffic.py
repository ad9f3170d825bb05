"""What the processes of a training send one another in one optimizer step: the bytes, and where they go.

Sizes are those of ring algorithms, which NCCL uses for large messages: of a buffer of B bytes each of n processes sends
(n - 1)/n·B in an all-gather or a reduce-scatter, and twice that in an all-reduce, which is one after the other. A ring
over several machines enters and leaves each of them once, however many GPUs they have (NCCL makes several rings, with a
part of the buffer each, which adds up to the same).
"""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config import Config
from gemma_tune.models.estimate.memory import BYTES, trained_parameters
from gemma_tune.models.estimate.size import ModelSize
from gemma_tune.models.sharding import sharding_of

_GATHER, _SCATTER, _REDUCE = "all-gather", "reduce-scatter", "all-reduce"


@dataclass(frozen=True)
class Collective:
    """One kind of collective operation of an optimizer step.

    Attributes:
        kind: all-gather, reduce-scatter or all-reduce.
        of: What is sent, for messages.
        size: Bytes of the whole buffer, of all times together.
        group: Processes that take part.
        machines: Machines that they are on.
        groups: How many such groups have members on one machine.
    """

    kind: str
    of: str
    size: float
    group: int
    machines: int = 1
    groups: int = 1

    @property
    def sent(self) -> float:
        """Bytes that each process sends, and receives."""
        return (2 if self.kind == _REDUCE else 1) * (self.group - 1) / self.group * self.size

    @property
    def network(self) -> float:
        """Bytes that leave each machine, and enter it."""
        return self.sent * self.groups if self.machines > 1 else 0.0

    @property
    def within(self) -> float:
        """Bytes that the processes of one machine send one another."""
        each = self.group // self.machines
        return self.sent * self.groups * (each - 1 if self.machines > 1 else each)


def traffic(cfg: Config, size: ModelSize, mixed: bool) -> list[Collective]:
    """What one optimizer step sends; empty for one process.

    Under DDP the gradients are reduced once, in the last forward and backward pass of a step. Under FSDP2 each pass
    gathers the weights, those of the layers again for the backward pass where they were freed, and reduces the
    gradients (`ACCUMULATION` of models/sharding.py).

    Args:
        cfg: The configuration.
        size: The model's sizes.
        mixed: Whether products run in bfloat16 over float32 weights: FSDP2 gathers and reduces in bfloat16 then.
    """
    sharding = sharding_of(cfg)
    if sharding.processes == 1:
        return []
    full = cfg.adapter.peft_type == "none"
    own, trained = BYTES[str(cfg.model.dtype)], trained_parameters(cfg, size)
    adapters = 0 if full else trained
    if sharding.shards == 1:
        gradients = trained * (own if full else 4.0)
        return [Collective(_REDUCE, "gradients", gradients, sharding.processes, sharding.machines)]
    weight, adapter = (2.0, 2.0) if mixed else (own, 4.0)
    layers = (size.parameters - size.outer_parameters) * weight + adapters * adapter
    once = size.outer_parameters * weight
    passes = cfg.train.gradient_accumulation_steps
    gathered = passes * (once + layers * (2 if sharding.reshards else 1))
    reduced = passes * trained * (weight if full else adapter)
    group, copies = sharding.shards, sharding.copies
    machines = sharding.machines if copies == 1 else 1
    found = [
        Collective(_GATHER, "weights", gathered, group, machines),
        Collective(_SCATTER, "gradients", reduced, group, machines),
    ]
    if copies > 1:  # each process has a shard of the gradients, to be reduced with the same shard of the other copies
        found.append(Collective(_REDUCE, "gradients", reduced / group, copies, copies, sharding.per_machine))
    return found


def in_bytes(number: float) -> str:
    """As makers of networks count: `54.0 GB`, `1.2 MB`."""
    unit, name = next((pair for pair in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if number >= pair[0]), (1e3, "kB"))
    return f"{number / unit:.1f} {name}"


def in_words(found: list[Collective]) -> str:
    """What each process sends in a step, and what of it goes over the network."""
    parts = ", ".join(f"{in_bytes(one.sent)} by {one.kind} of {one.of}" for one in found)
    said = f"{in_bytes(sum(one.sent for one in found))} ({parts})" if len(found) > 1 else parts
    network = sum(one.network for one in found)
    where = f"{in_bytes(network)} leave each machine over the network" if network else "all inside the machine"
    return f"{said}; {where}"
