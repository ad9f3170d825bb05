"""Memory: the estimate before anything is loaded, and the measured peak."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

from gemma_tune.config import Config
from gemma_tune.config.model import TRAIN_FULL, TRAIN_LORA, TRAIN_NOTHING, TRAIN_PROJECTOR
from gemma_tune.models.estimate.activations import (
    activations,
    fuses,
    logits,
    offloaded,
    offloads,
    rounds,
    stream_bytes,
    trains_embedding,
)
from gemma_tune.models.estimate.size import ModelSize, keeps_decoded
from gemma_tune.models.estimate.step_memory import beside as beside_parts
from gemma_tune.models.estimate.tower_size import TowerSize
from gemma_tune.models.kernels.host_table import stays_on_host
from gemma_tune.models.sharding import LAYERS_AT_ONCE, gathered_at_once, recomputes, sharding_of

BYTES = {"float32": 4.0, "bfloat16": 2.0}
# NF4: 4 bits a weight, and a scale for each block of 64: 32 bits, or with double quantization 8 + 32/256.
_FOUR_BIT = {False: (4 + 32 / 64) / 8, True: (4 + 8 / 64 + 32 / (64 * 256)) / 8}
BETWEEN = ("gathered", "DDP's buckets")  # parts of the estimate that several processes need for one another
_GIB = 1024**3
_STATUS = Path("/proc/self/status")


def in_unit(gib: float) -> str:
    """A size in the unit that fits: `7.4 GiB`, `350.0 MiB`, `12.0 KiB`; of one below 0 the same."""
    if gib < 0:
        return f"-{in_unit(-gib)}"
    if gib >= 1:
        return f"{gib:.1f} GiB"
    return f"{gib * 1024:.1f} MiB" if gib * 1024 >= 1 else f"{gib * 1024**2:.1f} KiB"


def optimizer_bytes(optim: str, weight: float = 4.0) -> float:
    """Bytes of an optimizer's state for each weight that it trains.

    Args:
        optim: Transformers' name of it.
        weight: Bytes of a trained weight: torch keeps the state in its type, bitsandbytes in float32 or 8 bit.
    """
    if "8bit" in optim or "4bit" in optim:
        return 2.0
    if optim in ("sgd", "adafactor") or "lomo" in optim:
        return 0.5
    one = weight if optim.startswith("adamw_torch") else 4.0
    return one if "lion" in optim or "rmsprop" in optim else 2 * one


def has_live_teacher(cfg: Config) -> bool:
    """Whether training keeps a copy of the unquantized model beside the trained one (`quant.teacher=live`)."""
    return rounds(cfg) and cfg.quant.teacher == "live"


def trained_parameters(cfg: Config, shape: ModelSize) -> int:
    """Weights that are trained: all of them, in QAT without tables that stay in 16 bit, or those of the adapter."""
    if cfg.adapter.peft_type != "none":
        return shape.lora_parameters(cfg.adapter.r, bool(cfg.adapter.target_parameters))
    frozen = 0 if trains_embedding(cfg) else shape.vocab_size * shape.hidden_size
    if rounds(cfg) and cfg.quant.per_layer_grid is None:
        frozen += shape.table_parameters
    return shape.parameters - frozen


def table_on_host(cfg: Config, shape: ModelSize) -> float:
    """Bytes of the table of per-layer embeddings, where training on a GPU keeps it in the host's memory; else 0."""
    return shape.table_parameters * BYTES[str(cfg.model.dtype)] if stays_on_host(cfg) else 0.0


def estimate(
    cfg: Config, shape: ModelSize, mixed: bool, longest: int, beside: float = 0.0, on_gpu: bool = False
) -> dict[str, float]:
    """Peak memory of one process of a training in GiB, by part; an estimate to plan with, not a bound.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        mixed: Whether products run in bfloat16 over float32 weights.
        longest: Tokens of the longest row, after cutting.
        beside: GiB of a reward model that scores the completions.
        on_gpu: Whether it trains on a GPU.
    """
    size = BYTES[str(cfg.model.dtype)]
    full = cfg.adapter.peft_type == "none"
    sharding = sharding_of(cfg)
    weights = base_weights(cfg, shape) - (table_on_host(cfg, shape) if on_gpu else 0.0)
    if sharding.shards > 1 and full and mixed:  # accelerate makes trained weights float32 then
        size, weights = 4.0, 4.0 * shape.parameters
    trained = trained_parameters(cfg, shape)
    if not full:
        weights += trained * 4.0  # adapters stay float32
    decoded = keeps_decoded(cfg.model.keep_decoded, not on_gpu, shape.linear_parameters)
    if cfg.model.load_in_4bit and decoded and fuses(cfg, on_gpu):
        weights += shape.linear_parameters * size
    gradients = trained * (size if full else 4.0)
    act = 2.0 if mixed else size
    types = (act, stream_bytes(cfg, size, act))
    parts = {
        "weights": weights / sharding.shards,
        "gradients": gradients / sharding.shards,
        "optimizer": trained * optimizer_bytes(cfg.train.optim, size if full else 4.0) / sharding.shards,
        "activations": activations(cfg, shape, *types, longest, on_gpu),
        "logits": logits(cfg, shape, *types, longest, on_gpu),
    }
    if not on_gpu:
        parts |= beside_parts(cfg, shape, *types, longest, parts)
    if sharding.shards > 1:
        at_once = gathered_at_once(shape, sharding) * act
        if not full:
            layers = LAYERS_AT_ONCE / shape.num_hidden_layers if sharding.reshards else 1.0
            at_once += trained * layers * (2.0 if mixed else 4.0)
        # Gradients of a layer are whole until they are reduced, those outside of the layers until all are
        reduced = min(shape.outer_parameters + 2 * shape.layer_parameters, shape.parameters) * act if full else 0.0
        parts[BETWEEN[0]] = at_once + reduced
    elif sharding.processes > 1:
        parts[BETWEEN[1]] = gradients  # reduced there (gradient_as_bucket_view=False, torch's default)
    if not full and (cfg.adapter.trainable_token_indices or cfg.model.added_tokens):
        # PEFT copies the embedding with the trained rows, for itself and as the head, and so do their gradients
        parts["trained rows"] = 4 * shape.vocab_size * shape.hidden_size * act
    if cfg.traits.rewarded and cfg.train.beta and full:  # without its adapter an adapted model is its own reference
        parts["reference"] = parts["weights"]
    if has_live_teacher(cfg):
        parts["teacher"] = shape.parameters * size
    parts |= _towers(cfg, shape, mixed)
    if beside:
        parts["reward model"] = beside * _GIB
    return {**{k: v / _GIB for k, v in parts.items()}, "total": sum(parts.values()) / _GIB}


def _towers(cfg: Config, shape: ModelSize, mixed: bool) -> dict[str, float]:
    """Bytes of the towers beside the model, where rows have media or towers are trained, and of the rows' images.

    Trained, all of their weights are float32. Frozen ones keep nothing for the backward pass, and hold one layer's
    activations at once. Sound is taken for images. Of a checkpoint of which only the number of the towers' weights is
    known, it is these weights alone.
    """
    part = cfg.model.train_towers
    if not shape.media_tokens and part == TRAIN_NOTHING:
        return {}
    towers = shape.towers or TowerSize(shape.tower_parameters, 0, 0, 0, 1, 0, 0, 0.0)
    adapters = cfg.adapter.r * towers.adapted_widths if part == TRAIN_LORA else 0
    whole = {
        TRAIN_FULL: towers.parameters,
        TRAIN_PROJECTOR: towers.projector_parameters,
        TRAIN_LORA: towers.saved_parameters,
    }
    trained = adapters + whole.get(part, 0)
    size = BYTES["float32"] if part != TRAIN_NOTHING else BYTES[str(cfg.model.dtype)]
    buckets = 4.0 if sharding_of(cfg).processes > 1 else 0.0
    act = 2.0 if mixed else size
    tokens = shape.media_tokens * (cfg.train.per_device_train_batch_size or 1)
    patches = tokens * towers.patches
    kept = patches * towers.width / towers.num_hidden_layers
    if part in (TRAIN_FULL, TRAIN_LORA):  # gradients go through all layers
        kept = (
            kept + patches * towers.num_hidden_layers * towers.hidden_size
            if recomputes(cfg)
            else patches * towers.width
        )
    return {
        "towers": (towers.parameters + adapters) * size + trained * (4.0 + buckets + optimizer_bytes(cfg.train.optim)),
        "images": (kept + 2 * tokens * shape.hidden_size) * act,
    }


def base_weights(cfg: Config, shape: ModelSize) -> float:
    """Bytes of the model's own weights, in its type or 4-bit."""
    size = BYTES[str(cfg.model.dtype)]
    linear = _FOUR_BIT[cfg.model.bnb_4bit_use_double_quant] if cfg.model.load_in_4bit else size
    return shape.linear_parameters * linear + (shape.parameters - shape.linear_parameters) * size


def host_memory(cfg: Config, shape: ModelSize, mixed: bool, longest: int) -> dict[str, float]:
    """GiB of a machine's memory that training on its GPUs needs at least, by part; empty where nothing is noteworthy.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        mixed: Whether products run in bfloat16 over float32 weights.
        longest: Tokens of the longest row, after cutting.
    """
    sharding, parts = sharding_of(cfg), {}
    if table := table_on_host(cfg, shape):
        parts["per-layer embeddings"] = table
    if sharding.shards > 1:  # a model that fits no GPU is loaded into the host's memory, and then shared out
        loaded = 1 if cfg.parallel.cpu_ram_efficient_loading else sharding.per_machine
        parts["weights while loading"] = base_weights(cfg, shape) * loaded
    if offloads(cfg):
        size = BYTES[str(cfg.model.dtype)]
        act = 2.0 if mixed else size
        waits = offloaded(cfg, shape, act, stream_bytes(cfg, size, act), longest)
        parts["offloaded activations"] = waits * sharding.per_machine
    return {name: value / _GIB for name, value in parts.items()}


def reset_peak(device: torch.device) -> None:
    """Resets the peak where the system supports it, since several runs may share a process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _STATUS.exists():
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb(device: torch.device) -> float:
    """MiB: the GPU's peak allocation, or without one the largest resident size of this process."""
    if device.type == "cpu" and _STATUS.exists():
        line = next(x for x in _STATUS.read_text(encoding="ascii").splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / 2**20)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
