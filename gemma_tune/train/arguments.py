"""Translates our configuration into the options of TRL's trainers."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from trl import SFTConfig

from gemma_tune.config import Config
from gemma_tune.config.model import TRAIN_NOTHING
from gemma_tune.models.hardware import mixed_precision
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.best import best_arguments
from gemma_tune.train.refused import refused_by_trainer
from gemma_tune.train.sharding import sharding_arguments
from gemma_tune.validation.trainer_options import trainer_options

PAD_TO = 32  # tokens
_RECOMPUTED = "gradient_checkpointing_kwargs"

T = TypeVar("T")


def sft_arguments(cfg: Config, folder: RunFolder, device: torch.device) -> SFTConfig:
    """SFTTrainer's arguments; see `arguments`."""
    t = cfg.train
    own: dict[str, Any] = {
        "max_length": t.max_length,
        "packing": t.packing,
        # With ever new lengths a CPU keeps compiling kernels and fragments its memory
        "pad_to_multiple_of": None if t.packing else PAD_TO,
    }
    if t.loss_type is not None:
        own["loss_type"] = t.loss_type
    if not t.packing and not cfg.data.streaming and not t.extra.get("shuffle_dataset"):
        # The rows are rendered and cut already; TRL would copy them all, one by one
        own["dataset_kwargs"] = {"skip_prepare_dataset": True}
    return arguments(SFTConfig, cfg, folder, device, own)


def arguments(kind: type[T], cfg: Config, folder: RunFolder, device: torch.device, own: dict[str, Any]) -> T:
    """A trainer's arguments; `train.extra` is passed on, whole numbers as floats where TRL has a float.

    Args:
        kind: TRL's dataclass.
        cfg: The configuration.
        folder: The run folder.
        device: Where it is trained.
        own: Options of this kind of trainer, beside those that all trainers have.

    Raises:
        UserError: The dataclass refuses a value.
    """
    t = cfg.train
    common: dict[str, Any] = {
        "output_dir": str(folder.checkpoints),
        "learning_rate": t.learning_rate,
        "lr_scheduler_type": t.lr_scheduler_type,
        "warmup_steps": t.warmup_steps,
        "num_train_epochs": t.num_train_epochs,
        "max_steps": t.max_steps,
        "per_device_train_batch_size": t.per_device_train_batch_size,
        "per_device_eval_batch_size": t.per_device_eval_batch_size,
        "gradient_accumulation_steps": t.gradient_accumulation_steps,
        "train_sampling_strategy": t.train_sampling_strategy,
        "optim": t.optim,
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "gradient_checkpointing": t.gradient_checkpointing,
        # Beside any other option torch's default is true, which loses gradients of keys that layers share
        **({_RECOMPUTED: {"use_reentrant": False}} if t.extra.get(_RECOMPUTED) else {}),
        "bf16": mixed_precision(cfg, device),
        "logging_steps": t.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # would log a NaN as 0.0 and go on
        "eval_strategy": "steps" if t.eval_steps else "no",
        "eval_steps": t.eval_steps,
        "save_strategy": "steps" if t.save_steps else "no",
        "save_steps": t.save_steps or 500,
        "save_total_limit": None,  # the trainer's subclass rotates, by its own folder names
        "seed": cfg.seed,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type != "cpu",
        # Trained towers have no part in a batch without images; adapters on layers that are never computed don't
        # occur. The buffers of our models never change
        "ddp_find_unused_parameters": cfg.model.train_towers != TRAIN_NOTHING,
        "ddp_broadcast_buffers": False,
        "ddp_timeout": int(cfg.launch.timeout_minutes * 60),
        "report_to": "none",  # the tracker's callback reports
        "disable_tqdm": True,  # the progress callback draws the bar
        **best_arguments(t),
        **sharding_arguments(cfg),
    }
    with refused_by_trainer():
        made = kind(**_with_extra(common | own, t.extra, trainer_options(kind.__name__)))
    return made


def _with_extra(ours: dict[str, Any], extra: dict[str, Any], types: dict[str, str]) -> dict[str, Any]:
    """Our options and the user's, whose mappings keep what ours sets; a whole number becomes TRL's float."""
    found = dict(ours)
    for name, value in extra.items():
        if isinstance(mapping := ours.get(name), dict):
            found[name] = {**(value or {}), **mapping}
        elif type(value) is int and "float" in types.get(name, "").split(" | "):
            found[name] = float(value)
        else:
            found[name] = value
    return found
