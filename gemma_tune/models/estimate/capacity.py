"""Compares the estimated memory and disk space of a run with what is free, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE

from gemma_tune.config import Config
from gemma_tune.config.export import CODED
from gemma_tune.errors import UserError
from gemma_tune.models.estimate.fitting import what_fits
from gemma_tune.models.estimate.memory import BETWEEN, BYTES, estimate, host_memory, in_unit, optimizer_bytes
from gemma_tune.models.estimate.size import ModelSize, published_size
from gemma_tune.models.folders import ADAPTER_VLLM
from gemma_tune.models.hardware import check_hardware, mixed_precision, pick_device
from gemma_tune.models.sharding import sharding_of
from gemma_tune.models.source import Source
from gemma_tune.run.paths import free_disk

_GIB = 1024**3
_CGROUP = Path("/sys/fs/cgroup")
_BESIDE = ("reference", "teacher", "reward model")  # parts of the estimate that are models of their own
_INT4 = 4.5 / 8  # bytes a weight, with its share of the scale
_DENSE_EXPERTS, _NO_TOWERS = ("w4a16_transformers", "phone"), ("gguf", "mlx")


def free_memory(device: torch.device, processes: int = 1) -> float:
    """GiB that one process may still take: of its GPU, or its share of the machine's or its container's.

    Args:
        device: Where it computes.
        processes: How many of them share the machine.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] / _GIB)
    return free_host_memory() / processes


def free_host_memory() -> float:
    """GiB that are free on this machine, or in its container."""
    free = float(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / name).read_text("ascii").strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text("ascii").splitlines())
        cache = sum(float(stat[name]) for name in ("inactive_file", "active_file"))  # given back when it is needed
        free = min(free, float(limit) - float(used) + cache)
    except (OSError, ValueError, KeyError):  # no container, or `max`
        pass
    return free / _GIB


def check_memory(
    cfg: Config, shape: ModelSize, mixed: bool, free: float, beside: float = 0.0, on_gpu: bool = False
) -> None:
    """Compares what does not depend on the length of the rows with the free memory, for each process.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        mixed: Whether products run in bfloat16 over float32 weights.
        free: GiB.
        beside: GiB of a model that scores the trained one.
        on_gpu: Whether what needs GPUs may be proposed.

    Raises:
        UserError: Weights, gradients and the optimizer's state alone need more.
    """
    parts = estimate(cfg, shape, mixed, longest=1, beside=beside, on_gpu=on_gpu)
    paged = cfg.train.optim.startswith("paged_")  # goes to the host's memory where the GPU's is full
    names = ("weights", "gradients", "towers", *BETWEEN, *_BESIDE, *(() if paged else ("optimizer",)))
    fixed = sum(parts.get(name, 0.0) for name in names)
    if fixed > free:
        raise UserError(
            f"model.model_name_or_path={cfg.model.model_name_or_path}: its weights, gradients and the optimizer's "
            f"state{_others(parts)} need about {in_unit(fixed)} of memory{_each(cfg)}, and {in_unit(free)} are free. "
            f"{_fix(cfg, shape, mixed, cfg.train.max_length, free, beside, on_gpu)}"
        )


def check_weights(cfg: Config, shape: ModelSize, free: float) -> None:
    """Compares the weights alone, in float32, with the free memory (GiB); for recipes that train nothing.

    Raises:
        UserError: They need more.
    """
    needed = shape.parameters * BYTES["float32"] / _GIB
    if needed > free:
        raise UserError(
            f"model.model_name_or_path={cfg.model.model_name_or_path}: its weights in float32 need about "
            f"{in_unit(needed)} of memory, and {in_unit(free)} are free; use a machine with more, or a smaller model."
        )


def check_published(cfg: Config) -> None:
    """Refuses to train or quantize a published checkpoint that surely doesn't fit, before the Hub is asked for it.

    Raises:
        UserError: As `check_memory` and `check_weights`, or an option that this machine doesn't support.
    """
    size = published_size(cfg.model.model_name_or_path)
    if size is None:
        return
    device = pick_device(cfg.model)
    free = free_memory(device, sharding_of(cfg).per_machine)
    if cfg.traits.trains:
        check_hardware(cfg)
        check_memory(cfg, size, mixed_precision(cfg, device), free, on_gpu=device.type == "cuda")
    else:
        check_weights(cfg, size, free)


def _others(parts: Mapping[str, float]) -> str:
    """The models beside the trained one, in words."""
    found = [f"the {name} of {in_unit(parts[name])}" for name in _BESIDE if name in parts]
    return f", with {' and '.join(found)}," if found else ""


def _each(cfg: Config) -> str:
    """Of how many processes a figure is."""
    sharding = sharding_of(cfg)
    if sharding.processes == 1:
        return ""
    shared = f", which share the model among {sharding.shards}" if sharding.shards > 1 else ""
    return f" on each of {sharding.processes} processes{shared}"


def memory_warning(
    cfg: Config,
    shape: ModelSize,
    mixed: bool,
    longest: int,
    free: float,
    beside: float = 0.0,
    on_gpu: bool = False,
) -> str | None:
    """The warning that the estimate exceeds the free memory; None if it doesn't.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        mixed: Whether products run in bfloat16 over float32 weights.
        longest: Tokens of the longest row, after cutting.
        free: GiB.
        beside: GiB of a model that scores the trained one.
        on_gpu: Whether what needs GPUs may be proposed.
    """
    total = estimate(cfg, shape, mixed, longest, beside, on_gpu)["total"]
    if total <= free:
        return None
    said = f"warning: training needs about {in_unit(total)} of memory{_each(cfg)}, and {in_unit(free)} are free."
    return f"{said} {_fix(cfg, shape, mixed, longest, free, beside, on_gpu)}"


def host_warning(cfg: Config, shape: ModelSize, mixed: bool, longest: int) -> str | None:
    """The warning that training on GPUs needs more of the machine's own memory than is free; None if it doesn't.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        mixed: Whether products run in bfloat16 over float32 weights.
        longest: Tokens of the longest row, after cutting.
    """
    parts, free = host_memory(cfg, shape, mixed, longest), free_host_memory()
    if not parts or sum(parts.values()) <= free:
        return None
    said = " and ".join(f"{in_unit(gib)} for {name}" for name, gib in parts.items())
    fixes = []
    if "offloaded activations" in parts:
        fixes.append("shorter rows (train.max_length), or train.extra.activation_offloading=false")
    if "weights while loading" in parts and not cfg.parallel.cpu_ram_efficient_loading:
        fixes.append("parallel.cpu_ram_efficient_loading=true")
    fix = f" What takes less: {'; '.join(fixes)}." if fixes else " Use machines with more."
    return f"warning: beside the GPUs' memory, this machine's own holds {said}, and {in_unit(free)} are free.{fix}"


def _fix(cfg: Config, shape: ModelSize, mixed: bool, longest: int, free: float, beside: float, on_gpu: bool) -> str:
    found = what_fits(cfg, shape, mixed, longest, free, beside, on_gpu=on_gpu)
    if found is None:
        return "No setting tried here makes it fit: take a smaller model."
    return f"What should fit: {' '.join(found.words)}"


def check_disk(cfg: Config, shape: ModelSize, source: Source, folder: Path, resumed: bool = False) -> None:
    """Compares what a run downloads and writes with the free disk space.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        source: The model.
        folder: The run folder, which need not exist.
        resumed: Whether the run goes on, so that its checkpoints are there already.

    Raises:
        UserError: Something doesn't fit; the message says what, where, and how to do with less.
    """
    problems = []
    writes = _run_bytes(cfg, shape, resumed) / _GIB
    free = free_disk(folder) / _GIB
    if writes > free:
        problems.append(
            f"output_dir={folder}: checkpoints and exports need about {in_unit(writes)}, and {in_unit(free)} are free; "
            "name a folder on another disk, or keep fewer checkpoints (train.save_total_limit, train.save_steps)."
        )
    if source.folder is None and not _is_downloaded(source):
        size = BYTES["bfloat16"] * (shape.parameters + shape.tower_parameters) / _GIB  # as published
        cache = Path(HF_HUB_CACHE)
        if size > (free := free_disk(cache) / _GIB):
            problems.append(
                f"model.model_name_or_path={source.base}: the checkpoint has about {in_unit(size)}, and "
                f"{in_unit(free)} are free in {cache}; make room, or set HF_HOME to a folder on another disk."
            )
    if problems:
        raise UserError(*problems)


def _run_bytes(cfg: Config, shape: ModelSize, resumed: bool) -> float:
    full = cfg.adapter.peft_type == "none"
    trained = shape.parameters if full else shape.lora_parameters(cfg.adapter.r, bool(cfg.adapter.target_parameters))
    size = BYTES[str(cfg.model.dtype)] if full else BYTES["float32"]
    total = 0.0 if full else trained * size
    best = cfg.train.metric_for_best_model is not None
    if (cfg.train.save_steps or best) and not resumed:
        checkpoint = trained * (size + optimizer_bytes(cfg.train.optim, size))
        # One more while the newest is written; with no limit at least that many are
        total += checkpoint * ((cfg.train.save_total_limit or 1) + 1 + best)
    elif cfg.traits.trains:  # the weights alone, until the run is finished
        total += trained * size
    if "merged" in cfg.export.formats:
        total += (shape.parameters + shape.tower_parameters) * BYTES[cfg.export.dtype]
    in_int4 = {*CODED} & set(cfg.export.formats)
    for name in in_int4:
        coded = shape.linear_parameters + (0 if name in _DENSE_EXPERTS else shape.expert_parameters)
        beside = shape.parameters - coded + (0 if name in _NO_TOWERS else shape.tower_parameters)
        total += coded * _INT4 + beside * BYTES["bfloat16"]
    if "gguf" in in_int4:  # it is checked with a float32 file beside it
        total += shape.parameters * BYTES["float32"]
    wide = {"gguf_f32": 4.0, "gguf_f16": 2.0, "gguf_bf16": 2.0, "gguf_q8_0": 8.5 / 8}
    wide["gguf_lora"] = 4.0  # it is checked on a float32 file of its base
    total += trained * BYTES["float32"] if ADAPTER_VLLM in cfg.export.formats and not full else 0.0
    if cfg.export.mmproj:
        ggufs = sum(name.startswith("gguf") and name != "gguf_lora" for name in cfg.export.formats)
        total += ggufs * shape.tower_parameters * BYTES["bfloat16"]
    return total + shape.parameters * sum(wide.get(name, 0.0) for name in cfg.export.formats)


def _is_downloaded(source: Source) -> bool:
    names = ("model.safetensors", "model.safetensors.index.json")
    found = (try_to_load_from_cache(source.base, name, revision=source.revision) for name in names)
    return any(isinstance(path, str) for path in found)
