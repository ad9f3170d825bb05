"""Memory: the estimate before anything is loaded, and the measured peak."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

from gemma_tune.config import Config
from gemma_tune.models.size import ModelSize

BYTES = {"float32": 4.0, "bfloat16": 2.0}
# NF4: 4 bits a weight, and a scale for each block of 64: 32 bits, or with double quantization 8 + 32/256.
_FOUR_BIT = {False: (4 + 32 / 64) / 8, True: (4 + 8 / 64 + 32 / (64 * 256)) / 8}
_GIB = 1024**3
_STATUS = Path("/proc/self/status")
_LOGIT_ROWS = 256  # positions whose logits TRL's loss holds at once


def in_unit(gib: float) -> str:
    """A size in the unit that fits: `7.4 GiB`, `350.0 MiB`, `12.0 KiB`."""
    if gib >= 1:
        return f"{gib:.1f} GiB"
    return f"{gib * 1024:.1f} MiB" if gib * 1024 >= 1 else f"{gib * 1024**2:.1f} KiB"


def optimizer_bytes(optim: str) -> float:
    """Bytes of an optimizer's state for each weight that it trains."""
    if "8bit" in optim or "4bit" in optim:
        return 2.0
    if optim in ("sgd", "adafactor") or "lomo" in optim:
        return 0.5
    return 4.0 if "lion" in optim or "rmsprop" in optim else 8.0


def has_live_teacher(cfg: Config) -> bool:
    """Whether training keeps a copy of the unquantized model beside the trained one (`quant.teacher=live`).

    Of a method with stages it is the stage, with a configuration of its own, that does.
    """
    quantizes = cfg.traits.trains and cfg.traits.quantizes and not cfg.traits.stages
    return quantizes and cfg.quant.teacher == "live"


def longest_possible(cfg: Config) -> int:
    """Tokens of the longest row while none is known: `train.max_length`, and of a pair that of both answers."""
    return cfg.train.max_length * cfg.traits.sequences


def tokens_of_row(cfg: Config, longest: int) -> int:
    """Tokens of one example of a forward pass at most; `train.max_length` where rows are packed."""
    return cfg.train.max_length if cfg.train.packing else longest


def estimate(cfg: Config, shape: ModelSize, mixed: bool, longest: int, beside: float = 0.0) -> dict[str, float]:
    """Peak memory of training in GiB, by part; an estimate to plan with, not a bound.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        mixed: Whether products run in bfloat16 over float32 weights.
        longest: Tokens of the longest row, after cutting.
        beside: GiB of a reward model that scores the completions.
    """
    size = BYTES[str(cfg.model.dtype)]
    linear = _FOUR_BIT[cfg.model.bnb_4bit_use_double_quant] if cfg.model.load_in_4bit else size
    weights = shape.linear_parameters * linear + (shape.parameters - shape.linear_parameters) * size
    full = cfg.adapter.peft_type == "none"
    trainable = shape.parameters if full else shape.lora_parameters(cfg.adapter.r)
    if not full:
        weights += trainable * 4.0  # adapters stay float32
    gradients = trainable * (size if full else 4.0)
    optimizer = trainable * optimizer_bytes(cfg.train.optim)
    assert cfg.train.per_device_train_batch_size is not None  # filled in before a run begins
    tokens = tokens_of_row(cfg, longest) * cfg.train.per_device_train_batch_size
    act = 2.0 if mixed else size
    one_layer = shape.layer_width * act
    # Eager attention keeps the scores of all heads: in the model's type, and float32 for the softmax and its backward
    scores = 0.0
    if (cfg.model.attn_implementation or shape.attention) == "eager":
        rows = 1 if cfg.train.packing else cfg.train.per_device_train_batch_size  # packed rows are joined to one
        scores = rows * shape.num_attention_heads * (tokens / rows) ** 2 * (act + 8.0)
    if cfg.train.gradient_checkpointing:
        activations = tokens * (shape.num_hidden_layers * shape.hidden_size * act + one_layer) + scores
    else:
        activations = shape.num_hidden_layers * (tokens * one_layer + scores)
    logits = 3 * _LOGIT_ROWS * shape.vocab_size * 4.0
    parts = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": activations,
        "logits": logits,
    }
    if not full and (cfg.adapter.trainable_token_indices or cfg.model.added_tokens):
        # PEFT copies the embedding with the trained rows, for itself and as the head, and so do their gradients
        parts["trained rows"] = 4 * shape.vocab_size * shape.hidden_size * act
    if cfg.traits.rewarded and cfg.train.beta and full:  # without its adapter an adapted model is its own reference
        parts["reference"] = weights
    if has_live_teacher(cfg):
        parts["teacher"] = shape.parameters * size
    if beside:
        parts["reward model"] = beside * _GIB
    return {**{k: v / _GIB for k, v in parts.items()}, "total": sum(parts.values()) / _GIB}


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
