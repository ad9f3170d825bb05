"""Options that this machine does not support are refused with a reason, before anything is loaded."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from gemma_tune.config import Config, ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.sharding import shards

if TYPE_CHECKING:
    import torch

_FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_3"}


def pick_device(model: ModelConfig) -> torch.device:
    """The device of `model.device`."""
    import torch

    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(model.device)


def mixed_precision(cfg: Config, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16 over float32 weights (`train.bf16`; null: where the hardware can)."""
    if cfg.train.bf16 is not None:
        return cfg.train.bf16
    import torch

    if device.type == "cuda":
        return cfg.model.dtype == "float32" and torch.cuda.is_bf16_supported()
    # An update from completions is 2.4 times as fast so on such a CPU; short rows of SFT gain nothing
    known = getattr(torch.cpu, "get_capabilities", dict)  # not in older versions of torch
    has: dict[str, Any] = known() if cfg.traits.rewarded and device.type == "cpu" else {}
    return cfg.model.dtype == "float32" and bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def can_shard(device: torch.device) -> bool:
    """Whether accelerate spreads weights over processes on this device; on CPUs it ignores FSDP2 without a word."""
    return bool(device.type != "cpu")


def check_hardware(cfg: Config) -> None:
    """Raises UserError with every option of the model and the trainer that this machine doesn't support."""
    problems = _problems_of_model(cfg.model)
    on_gpu = pick_device(cfg.model).type == "cuda"
    planned = cfg.dry_run and cfg.model.device == "auto"  # perhaps for another machine
    if shards(cfg) and not planned and not can_shard(pick_device(cfg.model)):
        problems.append(
            "parallel=fsdp2 needs GPUs, and this run is on the CPU, where accelerate spreads no weights over "
            "processes; take parallel=ddp."
        )
    if cfg.train.optim.startswith("paged_") and not on_gpu:
        problems.append(
            f"train.optim={cfg.train.optim} pages between GPU and host memory, and this run is on the CPU; "
            f"use {cfg.train.optim.removeprefix('paged_')}."
        )
    if cfg.train.optim.endswith("_fused") and not on_gpu and cfg.train.optim != "adamw_torch_fused":
        problems.append(f"train.optim={cfg.train.optim} needs a GPU; use adamw_torch.")
    recomputation = cfg.train.extra.get("gradient_checkpointing_kwargs") or {}
    for offloading, asked in (
        ("activation_offloading=true", cfg.train.extra.get("activation_offloading")),
        ("gradient_checkpointing_kwargs={offload: true}", recomputation.get("offload")),
    ):
        if asked and not on_gpu:
            problems.append(
                f"train.extra.{offloading} moves activations from the GPU to the host's memory (which asks for an "
                "accelerator), and this run is on the CPU; leave it out."
            )
    if cfg.train.use_vllm and not on_gpu:
        problems.append(
            "train.use_vllm=true: after each update the weights go to vLLM by NCCL, which needs a CUDA device on both "
            "sides (vLLM's weight transfer, used by TRL), and this run is on the CPU; leave it out, and Transformers "
            "writes the completions. A vLLM for CPUs checks and serves what is trained: engine.vllm."
        )
    batching = "use_transformers_continuous_batching"
    if cfg.train.extra.get(batching) and mixed_precision(cfg, pick_device(cfg.model)):
        problems.append(
            f"train.extra.{batching}=true with mixed precision: TRL casts the float32 weights that are trained to "
            "bfloat16 when it writes completions, and leaves them so; set train.bf16=false, or leave it out."
        )
    if cfg.train.torch_compile and not planned and not problems:
        from gemma_tune.models.kernels.compiled_parts import check_compiler

        problems += filter(None, [check_compiler(pick_device(cfg.model))])
    if problems:
        raise UserError(*problems)


def check_model_hardware(model: ModelConfig) -> None:
    """Raises UserError with every option of the model that this machine doesn't support."""
    if problems := _problems_of_model(model):
        raise UserError(*problems)


def _problems_of_model(model: ModelConfig) -> list[str]:
    import torch  # the checks of runs that are compared as they were measured wait for none

    if model.device == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device=cuda: this machine has no GPU that torch can use; set model.device=auto.")
    problems = []
    on_gpu = pick_device(model).type == "cuda"
    attention = model.attn_implementation or "sdpa"
    if attention in _FLASH_PACKAGES:
        package = _FLASH_PACKAGES[attention]
        if not on_gpu:
            problems.append(f"model.attn_implementation={attention} needs a GPU, and this run is on the CPU; use sdpa.")
        elif importlib.util.find_spec(package) is None:
            problems.append(
                f"model.attn_implementation={attention} needs the package {package}, which isn't installed; use sdpa."
            )
        if model.dtype == "float32":
            problems.append(f"model.attn_implementation={attention} needs model.dtype=bfloat16, not float32.")
    if attention == "flex_attention" and not on_gpu:
        problems.append("model.attn_implementation=flex_attention needs a GPU, and this run is on the CPU; use sdpa.")
    if on_gpu and model.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        problems.append("model.dtype=bfloat16: this GPU has no bfloat16; use float32.")
    return problems


def check_vllm(cfg: Config, with_towers: bool) -> None:
    """Raises UserError if vLLM would load another model than the one that is trained.

    Args:
        cfg: The configuration.
        with_towers: Whether the checkpoint has towers, which vLLM loads and we don't.
    """
    if cfg.train.use_vllm and with_towers:
        raise UserError(
            f"train.use_vllm=true: {cfg.model.model_name_or_path} has towers for images or audio; vLLM would load it "
            "whole, under names that the trained language part hasn't. Leave train.use_vllm out."
        )
