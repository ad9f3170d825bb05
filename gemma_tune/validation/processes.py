"""Checks of `launch` and `parallel` against the environment, the recipe and the model. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gemma_tune.config import Config
from gemma_tune.config.launch import NODES, LaunchConfig
from gemma_tune.config.methods import Kind
from gemma_tune.config.model import is_gguf
from gemma_tune.config.parallel import UNSUPPORTED, ParallelConfig
from gemma_tune.errors import UserError
from gemma_tune.processes import local_world, was_started, world
from gemma_tune.validation.clusters import cluster_problems

_SHARDED = "parallel=fsdp2 shares weights, gradients and the optimizer's state among the processes"
_LONG = (
    "by the estimate one GPU of 80 GB holds rows of 32k tokens of every size with adapter=lora, "
    "train.gradient_checkpointing=true and train.extra.activation_offloading=true, and (but for the 26B-A4B) of 128k "
    "with model.load_in_4bit=true and model.attn_implementation=flash_attention_2 (Gemma 4: flex_attention) beside "
    "these (docs/scaling.md)"
)
_WHY_NOT = {
    **dict.fromkeys(
        ("zero2", "zero3"), f"DeepSpeed's ZeRO is not supported, since nothing here could test it. {_SHARDED}"
    ),
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
SHARDED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
_OF_SLURM, _OF_SKY = "slurm", "sky"
_OF_MACHINES = ("NODE_RANK", "MASTER_ADDR")


def resolve_processes(launch: LaunchConfig) -> None:
    """Sets how many processes and machines there are: those that the environment says, or those that are asked for.

    Raises:
        UserError: The environment says something else than the configuration.
    """
    if not was_started():
        launch.num_nodes = launch.num_nodes or _number("NNODES") or 1
        launch.num_processes = launch.num_processes or _gpus_asked_for(launch) or 1
        return
    each, all_of_them = local_world(), world()
    if all_of_them % each:
        raise UserError(
            f"launch: WORLD_SIZE={all_of_them} is no multiple of LOCAL_WORLD_SIZE={each}; start as many processes on "
            "each machine."
        )
    there = {"num_processes": each, "num_nodes": all_of_them // each}
    problems = [
        f"launch.{key}={asked}, and {number} were started (LOCAL_WORLD_SIZE={each}, WORLD_SIZE={all_of_them}); leave "
        f"launch.{key} out."
        for key, number in there.items()
        if (asked := getattr(launch, key)) not in (None, number)
    ]
    if problems:
        raise UserError(*problems)
    launch.num_processes, launch.num_nodes = there["num_processes"], there["num_nodes"]


def _gpus_asked_for(launch: LaunchConfig) -> int | None:
    """GPUs of each machine that a cluster is asked for: each has a process; None where it isn't said."""
    if launch.by == _OF_SLURM:
        return launch.slurm.gpus_per_node
    _, _, number = (launch.sky.accelerators or "").partition(":")
    return int(number) if launch.by == _OF_SKY and number.isdigit() else None


def _number(name: str) -> int | None:
    """A number of the environment; None where it isn't set."""
    value = os.environ.get(name, "").strip()
    return int(value) if value.isascii() and value.isdigit() else None


def _environment(cfg: Config) -> Iterator[str]:
    """What the environment says of processes and machines that doesn't go with the configuration."""
    launch = cfg.launch
    if was_started():
        if launch.by != "local":
            yield f"launch={launch.by} starts the processes itself: leave out torchrun or accelerate launch."
        for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
                yield (
                    f"ACCELERATE_USE_{name}=true in the environment: accelerate's configuration asks for it, and would "
                    "change what is trained. Start with accelerate launch --multi_gpu, and share the model by "
                    "parallel=fsdp2."
                )
        return
    if (processes := world()) > 1:
        yield (
            f"WORLD_SIZE={processes} in the environment without LOCAL_RANK, as Kubernetes sets it for a whole machine: "
            "start the processes by torchrun -m gemma_tune …, or unset it and take launch.num_processes."
        )
    for name, least, most in (("NNODES", 1, NODES), ("NODE_RANK", 0, NODES), ("MASTER_PORT", 1, 65535)):
        value = os.environ.get(name, "").strip()
        if value and not ((number := _number(name)) is not None and least <= number <= most):
            yield f"{name}={value} in the environment is not a number from {least} to {most}; correct or unset it."
            return
    if launch.by == "local":
        yield from _machines(launch, starts=not cfg.dry_run)


def _machines(launch: LaunchConfig, starts: bool) -> Iterator[str]:
    """What is missing or wrong in the environment of one of several machines.

    Args:
        launch: What is asked for.
        starts: Whether the processes are started now.
    """
    there, mine = _number("NNODES"), _number("NODE_RANK")
    nodes = launch.num_nodes or there or 1
    if there not in (None, nodes):
        yield f"launch.num_nodes={nodes}, and NNODES={there} in the environment; leave one of the two out."
    elif mine is not None and mine >= nodes:
        of = f"the machines are 0 to {nodes - 1}" if nodes > 1 else "there is one machine"
        yield f"NODE_RANK={mine} in the environment: {of}; set launch.num_nodes on each machine, or unset NODE_RANK."
    elif nodes > 1 and starts and (missing := [n for n in _OF_MACHINES if not os.environ.get(n, "").strip()]):
        yield (
            f"launch.num_nodes={nodes}: {' and '.join(missing)} must be in the environment. Give this command on each "
            "machine with NODE_RANK=0, 1, … (its number) and MASTER_ADDR=NAME (of machine 0), or take launch=slurm."
        )


def processes_of(cfg: Config, asked: int | None = None) -> int:
    """How many processes a run has, before `resolve_processes`: those asked for, or those that were started."""
    return max(cfg.processes if asked is None else asked, world())


def process_problems(cfg: Config) -> Iterator[str]:
    """What `launch` and `parallel` can't do with this recipe and this model."""
    method, parallel, launch = cfg.traits, cfg.parallel, cfg.launch
    kept = method.kind in (Kind.TRAIN, Kind.MEASURE)
    asked = processes_of(cfg, 1 if method.kind is Kind.PLAN else cfg.processes)  # a plan is for so many, made in one
    if not kept and (asked > 1 or launch.by != "local"):
        yield f"recipe={cfg.recipe} runs in one process: leave out launch, torchrun and accelerate launch."
    engines = cfg.model.base_url or cfg.engine.vllm or is_gguf(cfg.model.model_name_or_path)
    if method.kind is Kind.MEASURE and asked > 1 and engines:
        yield f"recipe={cfg.recipe}: one process asks llama.cpp, vLLM and servers: leave out launch and torchrun."
    if parallel.strategy in UNSUPPORTED:
        yield f"parallel={parallel.strategy}: {_WHY_NOT[parallel.strategy]}."
    changed = [key for key in _OF_FSDP2 if getattr(parallel, key) != getattr(ParallelConfig(), key)]
    if parallel.strategy != "fsdp2":
        for key in changed:
            yield f"parallel.{key} has no effect with parallel={parallel.strategy}; leave it out, or add fsdp2."
    else:
        yield from sharding_problems(cfg)
    if kept:
        yield from _environment(cfg)
    yield from cluster_problems(launch)
    for name, variable in ((_OF_SLURM, "SLURM_JOB_ID"), (_OF_SKY, "SKYPILOT_NODE_RANK")):
        if launch.by != name and variable not in os.environ and getattr(launch, name) != getattr(LaunchConfig(), name):
            yield f"launch.{name} has no effect with launch={launch.by}; leave it out, or take launch={name}."


def sharding_problems(cfg: Config) -> Iterator[str]:
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
    if method.reference:
        yield (
            f"parallel=fsdp2 with recipe={cfg.recipe}: TRL computes the reference's log-probabilities before weights "
            "are shared, with the whole model in each process; take parallel=ddp, with model.load_in_4bit=true where "
            "a 16-bit base doesn't fit."
        )
    if method.quantizes:
        yield (
            f"parallel=fsdp2 with recipe={cfg.recipe}: the weights' blocks are looked at as whole matrices before and "
            "after training; take parallel=ddp."
        )
    each = cfg.launch.num_processes or local_world()
    if cfg.parallel.shard_within_node and (cfg.launch.num_nodes or 1) > 1 and each == 1:
        yield (
            "parallel.shard_within_node=true with one process on each machine shares nothing; leave it out, and all "
            "processes share the model, or set launch.num_processes."
        )
    if cfg.parallel.activation_checkpointing and cfg.train.gradient_checkpointing:
        yield (
            "parallel.activation_checkpointing=true and train.gradient_checkpointing=true: each computes activations "
            "twice, both together three times; leave one of the two out."
        )
    if cfg.parallel.activation_checkpointing and cfg.adapter.peft_type != "none":
        yield (
            f"parallel.activation_checkpointing=true with adapter={cfg.adapter.peft_type}: PEFT finds no adapter in "
            "layers that accelerate has wrapped, so checkpoints would hold none; take train.gradient_checkpointing="
            "true, which computes the same."
        )
    if cfg.adapter.peft_type != "none" and (cfg.adapter.trainable_token_indices or cfg.model.added_tokens):
        yield (
            "parallel=fsdp2 with adapter.trainable_token_indices or model.added_tokens: the trained rows stand in the "
            "embedding, of which each process has a part; take parallel=ddp."
        )
    if cfg.train.torch_compile:
        yield "parallel=fsdp2 with train.torch_compile: it was not tried on weights that are shared; leave it out."
    if cfg.train.optim not in SHARDED_OPTIMIZERS:
        yield (
            f"parallel=fsdp2 with train.optim={cfg.train.optim}: it was not tried on weights that are shared; take "
            f"{' or '.join(SHARDED_OPTIMIZERS)}, or parallel=ddp."
        )
    init = str(cfg.adapter.init_lora_weights)
    if cfg.adapter.peft_type != "none" and init.startswith(("pissa", "olora", "loftq")):
        yield (
            f"parallel=fsdp2 with adapter.init_lora_weights={init}, which changes the base's weights: sharded ones "
            "can't be changed so; take parallel=ddp, or adapter=lora."
        )
