"""What looks on while a trainer trains: how fast it is, and where its time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gemma_tune.config import Config
from gemma_tune.models.estimate.flops import model_operations
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.unwrap import language_part
from gemma_tune.train.profiling import FOLDER, Profile
from gemma_tune.train.throughput import Throughput


def watch(trainer: Any, cfg: Config) -> None:
    """Gives a `GemmaTrainer` its throughput, but for rewards, which say their own, and its profile, where asked for."""
    language = language_part(trainer.model)
    if not cfg.traits.rewarded:
        in_4bit = cfg.model.bnb_4bit_compute_dtype if cfg.model.load_in_4bit else None
        name = "bfloat16" if trainer.args.bf16 else in_4bit or cfg.model.dtype
        dtype = language.dtype if name is None else getattr(torch, name)
        trainer.throughput = Throughput(trainer.accelerator, model_operations(cfg, size_of(language.config)), dtype)
        trainer.add_callback(trainer.throughput)
    if cfg.train.profile:
        trainer.profile = Profile(Path(trainer.args.output_dir).parent / FOLDER)
        trainer.add_callback(trainer.profile)
