"""Checks of `launch` and `parallel` against the environment, the recipe and the model. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gemma_tune.config import Config
from gemma_tune.config.launch import LaunchConfig
from gemma_tune.config.methods import Kind
from gemma_tune.config.parallel import UNSUPPORTED, ParallelConfig
from gemma_tune.errors import UserError
from gemma_tune.processes import local_world, world

_SHARDED = "parallel=fsdp2 shares weights, gradients and the optimizer's state among the processes"
_LONG = (
    "rows of 32k tokens fit by train.gradient_checkpointing=true, adapter=lora and train.extra.activation_offloading="
    "true, 128k on more GPUs by parallel=fsdp2, too: recipe=plan and dry_run=true have the estimate (docs/scaling.md)"
)
_WHY_NOT = {
    "zero2": f"DeepSpeed's ZeRO is not supported, since nothing here could test it. {_SHARDED}",
    "zero3": f"DeepSpeed's ZeRO is not supported, since nothing here could test it. {_SHARDED}",
    "ulysses": (
        "sequence parallelism is not supported: DeepSpeed's needs CUDA, and the same number of key-value heads and "
        f"head size in all layers, which Gemma 4 hasn't. Instead, {_LONG}"
    ),
    "context_parallel": (
        "accelerate's context parallelism drops the attention mask and knows no sliding windows, which Gemma 2, 3, 3n "
        f"and 4 have in most layers. Instead, {_LONG}"
    ),
}
_OF_FSDP2 = ("shard_within_node", "reshard_after_forward", "activation_checkpointing", "cpu_ram_efficient_loading")
_OF_SLURM, _OF_SKY = "slurm", "sky"


def resolve_processes(launch: LaunchConfig) -> None:
    """Sets how many processes and machines there are: those that the environment says, or those that are asked for.

    Raises:
        UserError: The environment says something else than the configuration.
    """
    if world() == 1:
        launch.num_nodes = launch.num_nodes or _number("NNODES") or 1
        launch.num_processes = launch.num_processes or 1
        return
    if world() % local_world():
        raise UserError(
            f"launch: WORLD_SIZE={world()} is no multiple of LOCAL_WORLD_SIZE={local_world()}; start as many processes "
            "on each machine."
        )
    there = {"num_processes": local_world(), "num_nodes": world() // local_world()}
    problems = [
        f"launch.{key}={asked}, and {number} were started (LOCAL_WORLD_SIZE={local_world()}, WORLD_SIZE={world()}); "
        f"leave launch.{key} out."
        for key, number in there.items()
        if (asked := getattr(launch, key)) not in (None, number)
    ]
    if problems:
        raise UserError(*problems)
    launch.num_processes, launch.num_nodes = there["num_processes"], there["num_nodes"]


def _number(name: str) -> int | None:
    """A number of the environment."""
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    if not value.isdigit() or value == "0":
        raise UserError(f"{name}={value} in the environment: this is no number of machines; unset it, or give it one.")
    return int(value)


def process_problems(cfg: Config) -> Iterator[str]:
    """What `launch` and `parallel` can't do with this recipe and this model."""
    method, parallel, launch = cfg.traits, cfg.parallel, cfg.launch
    kept = method.kind in (Kind.TRAIN, Kind.MEASURE)
    asked = (launch.num_processes or 1) * (launch.num_nodes or 1)
    if not kept and (max(asked, world()) > 1 or launch.by != "local"):
        yield f"recipe={cfg.recipe} runs in one process: leave out launch, torchrun and accelerate launch."
    if parallel.strategy in UNSUPPORTED:
        yield f"parallel={parallel.strategy}: {_WHY_NOT[parallel.strategy]}."
    changed = [key for key in _OF_FSDP2 if getattr(parallel, key) != getattr(ParallelConfig(), key)]
    if parallel.strategy != "fsdp2":
        for key in changed:
            yield f"parallel.{key} has no effect with parallel={parallel.strategy}; leave it out, or add fsdp2."
    else:
        yield from _fsdp2(cfg)
    for name in (_OF_SLURM, _OF_SKY):
        if launch.by != name and getattr(launch, name) != getattr(LaunchConfig(), name):
            yield f"launch.{name} has no effect with launch={launch.by}; leave it out, or take launch={name}."


def _fsdp2(cfg: Config) -> Iterator[str]:
    """What sharded weights can't do yet."""
    method = cfg.traits
    ways = "parallel=ddp keeps a whole copy of the 4-bit base in each process, or recipe=lora_sft shards a 16-bit one"
    if cfg.model.load_in_4bit:
        yield (
            "parallel=fsdp2 with a 4-bit base: sharded 4-bit weights came out wrong on GPUs (bitsandbytes issue 1945), "
            f"and nothing has shown another storage to be right. Two ways out: {ways}."
        )
    if method.rewarded and not cfg.train.use_vllm:
        yield (
            f"parallel=fsdp2 with recipe={cfg.recipe}: Transformers can't write completions with sharded weights; take "
            "parallel=ddp, or train.use_vllm=true."
        )
    if method.quantizes:
        yield (
            f"parallel=fsdp2 with recipe={cfg.recipe}: the weights' blocks are looked at as whole matrices before and "
            "after training; take parallel=ddp."
        )
    if cfg.parallel.activation_checkpointing and cfg.train.gradient_checkpointing:
        yield (
            "parallel.activation_checkpointing=true and train.gradient_checkpointing=true: each computes activations "
            "twice, both together three times; leave one of the two out."
        )
    init = str(cfg.adapter.init_lora_weights)
    if cfg.adapter.peft_type != "none" and init.startswith(("pissa", "olora", "loftq")):
        yield (
            f"parallel=fsdp2 with adapter.init_lora_weights={init}, which changes the base's weights: sharded ones "
            "can't be changed so; take parallel=ddp, or adapter=lora."
        )
