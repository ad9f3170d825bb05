"""`make figures-scaling`: how long a training step takes on several GPUs, and what fits: calculated, not measured.

Operations, memory and bytes are those of `dry_run=true` (plan/speed.py, memory.py and traffic.py of models/estimate/).
What a GPU and a machine can do is assumed: the options of this program, which its output names. It prints its tables,
or puts them into a page, between the comments that name them:

    python benchmarks/scaling_model.py --model google/gemma-3-12b-it --gpus 4 16 --gpus-per-machine 4 --network 25
    python benchmarks/scaling_model.py --write docs/scaling.md
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import page_tables
from transformers import AutoConfig

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.config.parallel import ParallelConfig
from gemma_tune.models.estimate.memory import estimate, host_memory
from gemma_tune.models.estimate.size import ModelSize, published_size
from gemma_tune.models.estimate.traffic import Collective, in_bytes, traffic
from gemma_tune.models.published import published
from gemma_tune.plan.fits import KEPT_GB
from gemma_tune.plan.speed import operations
from gemma_tune.validation.processes import sharding_problems

TRAININGS = {
    "full": ("full_sft", []),
    "full, bfloat16": ("full_sft", ["model.dtype=bfloat16"]),
    "LoRA": ("lora_sft", []),
    "QLoRA": ("qlora_sft", []),
}
KEPT_SHORT = ["train.per_device_train_batch_size=1", "train.gradient_checkpointing=true", "train.packing=true"]
LONG = (32_768, 131_072)


def options() -> argparse.ArgumentParser:
    """What is assumed, each with its default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="google/gemma-3-27b-it", help="a published checkpoint")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64], help="GPUs in all, a table for each")
    parser.add_argument("--gpus-per-machine", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 32768], help="of a forward pass on a GPU")
    parser.add_argument("--accumulation", type=int, default=1, help="forward passes of an optimizer step")
    parser.add_argument("--tflops", type=float, default=989.4, help="peak of a GPU in bfloat16")
    parser.add_argument("--utilization", type=float, default=0.4, help="share of the peak that training reaches")
    parser.add_argument("--nvlink", type=float, default=450.0, help="GB/s that a GPU sends inside its machine")
    parser.add_argument(
        "--network",
        type=float,
        nargs="+",
        default=[400.0, 12.5],
        help="GB/s that a machine sends to others, each a table",
    )
    parser.add_argument("--overlap", type=float, default=0.0, help="share of sending that hides behind computing")
    parser.add_argument("--memory", type=float, default=80.0, help="GiB of a GPU")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA adapters")
    parser.add_argument(
        "--long-models", nargs="*", default=[f"google/gemma-3-{size}-it" for size in ("1b", "4b", "12b", "27b")]
    )
    parser.add_argument("--write", type=Path, help="a page with the comments that name the tables")
    return parser


def configuration(training: str, model: str, rank: int) -> Config:
    """A kind of training with gradient checkpointing and one packed row for each forward pass."""
    recipe, words = TRAININGS[training]
    adapter = [] if recipe == "full_sft" else [f"adapter.r={rank}"]
    return compose_config(recipe, [f"model.model_name_or_path={model}", "data=sample", *KEPT_SHORT, *words, *adapter])


def placed(cfg: Config, gpus: int, per_machine: int, strategy: str, within: bool | None = None) -> Config:
    """The same on so many GPUs."""
    found = copy.deepcopy(cfg)
    found.launch.num_nodes = max(1, gpus // per_machine)
    found.launch.num_processes = gpus // found.launch.num_nodes
    found.parallel = ParallelConfig(strategy=strategy, shard_within_node=within)
    return found


def seconds_of(one: Collective, nvlink: float, network: float) -> float:
    """The slower of what a GPU sends inside its machine and what the machine sends to others."""
    inside = one.sent / (nvlink * 1e9) if one.within else 0.0
    return max(inside, one.network / (network * 1e9))


def step(cfg: Config, size: ModelSize, a: argparse.Namespace, network: float) -> dict[str, Any] | None:
    """Seconds of an optimizer step, what is sent, and the memory of a GPU; None where it is refused."""
    if cfg.parallel.strategy == "fsdp2" and any(sharding_problems(cfg)):
        return None
    mixed = cfg.model.dtype == "float32"  # as on a GPU with bfloat16
    tokens = cfg.train.max_length
    each = operations(cfg, size)
    assert each is not None and cfg.train.gradient_accumulation_steps
    computing = each * tokens * cfg.train.gradient_accumulation_steps / (a.tflops * 1e12 * a.utilization)
    found = traffic(cfg, size, mixed)
    sending = sum(seconds_of(one, a.nvlink, network) for one in found)
    return {
        "computing": computing,
        "sending": sending,
        "step": computing + sending - min(a.overlap * sending, computing),
        "sent": sum(one.sent for one in found),
        "network": sum(one.network for one in found),
        "memory": estimate(cfg, size, mixed, tokens, on_gpu=True)["total"],
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ways(gpus: int, a: argparse.Namespace) -> dict[str, tuple[str, bool | None]]:
    """By name: strategy, and whether the model is shared within each machine."""
    if gpus <= a.gpus_per_machine:
        return {"DDP": ("ddp", None), "FSDP2": ("fsdp2", None)}
    return {"DDP": ("ddp", None), "FSDP2, all GPUs": ("fsdp2", False), "FSDP2, in each machine": ("fsdp2", True)}


def steps_table(gpus: int, network: float, a: argparse.Namespace, base: dict[str, Config], size: ModelSize) -> str:
    """A row for each kind of training and number of tokens, with the ways to share the model side by side."""
    rows, names = [], ways(gpus, a)
    for tokens in a.tokens:
        for kind, cfg in base.items():
            cells, computing = [], "–"
            for strategy, within in names.values():
                asked = placed(cfg, gpus, a.gpus_per_machine, strategy, within)
                asked.train.max_length, asked.train.gradient_accumulation_steps = tokens, a.accumulation
                found = step(asked, size, a, network)
                if found is None:
                    cells.append("refused")
                    continue
                computing = f"{found['computing']:.2f}"
                fits = found["memory"] <= a.memory - KEPT_GB
                seconds = f"{found['step']:.2f} s" if fits else "doesn't fit"
                cells.append(f"{seconds}; {found['memory']:.0f} GiB; {in_bytes(found['sent'])}")
            rows.append([f"{tokens:,}", kind, computing, *cells])
    return table(["tokens", "training", "computing, s", *names], rows)


def context(name: str) -> int:
    """Tokens that a published model can hold."""
    found = published(name)
    assert found is not None, name
    return int(AutoConfig.for_model(found.model_type, **found.text).max_position_embeddings)


def long_table(a: argparse.Namespace) -> str:
    """One row of many tokens: attention's masks, activations on the host, and a model that is shared."""

    def needed(cfg: Config, size: ModelSize) -> str:
        if cfg.parallel.strategy == "fsdp2" and any(sharding_problems(cfg)):
            return "refused"
        gib = estimate(cfg, size, False, cfg.train.max_length, on_gpu=True)["total"]
        return f"{gib:.0f}" if gib <= a.memory - KEPT_GB else f"{gib:.0f} (too much)"

    rows = []
    for name, kind, tokens in itertools.product(a.long_models, ("LoRA", "QLoRA"), LONG):
        size = published_size(name)
        assert size is not None, name
        if tokens > context(name):
            continue
        cfg = configuration(kind, name, a.rank)
        cfg.train.max_length = tokens
        cells = [needed(cfg, size)]
        cfg.model.attn_implementation = "flash_attention_2"
        cells.append(needed(cfg, size))
        cfg.train.extra["activation_offloading"] = True
        cells += [needed(cfg, size), needed(placed(cfg, a.gpus_per_machine, a.gpus_per_machine, "fsdp2"), size)]
        host = host_memory(cfg, size, False, tokens)["offloaded activations"]
        rows.append([name.split("/")[-1], kind, f"{tokens:,}", *cells, f"{host:.0f}"])
    several = f"and FSDP2 on {a.gpus_per_machine} GPUs"
    head = ["model", "training", "tokens", "sdpa", "flash_attention_2", "and offloading", several, "host, for each GPU"]
    return table(head, rows)


def assumed(a: argparse.Namespace) -> str:
    """The options, in a sentence."""
    networks = " or ".join(f"{network:g}" for network in a.network)
    passes = "pass" if a.accumulation == 1 else "passes"
    return (
        f"Assumed: a GPU reaches {a.utilization:.0%} of {a.tflops:g} TFLOP/s, has {a.memory:g} GiB, and sends "
        f"{a.nvlink:g} GB/s inside its machine; a machine of {a.gpus_per_machine} GPUs sends {networks} GB/s into the "
        f"network; {a.overlap:.0%} of sending hides behind computing; LoRA of rank {a.rank}; gradient checkpointing; "
        f"{a.accumulation} forward and backward {passes} in an optimizer step."
    )


def tables(a: argparse.Namespace) -> dict[str, str]:
    """Every table, by its name in the page."""
    size = published_size(a.model)
    if size is None:
        raise SystemExit(f"--model {a.model}: no published checkpoint")
    base = {kind: configuration(kind, a.model, a.rank) for kind in TRAININGS}
    found = {"assumed": assumed(a)}
    for gpus in a.gpus:
        networks = a.network if gpus > a.gpus_per_machine else a.network[:1]
        for network in networks:
            name = f"{gpus} GPUs" if gpus <= a.gpus_per_machine else f"{gpus} GPUs, {network:g} GB/s"
            found[name] = steps_table(gpus, network, a, base, size)
    return {**found, "long": long_table(a)}


placed_in = partial(page_tables.placed_in, "scaling_model")


def main(words: Sequence[str] | None = None) -> None:
    a = options().parse_args(words)
    page_tables.write_or_print("scaling_model", a.write, tables(a))


if __name__ == "__main__":
    main()
