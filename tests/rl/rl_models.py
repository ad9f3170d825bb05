"""A trainer with rewards on the embedded model, without a run around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gemma_tune.cli.compose import compose_config
from gemma_tune.models.adapters import adapter as adapters
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rl.arguments import rl_arguments
from gemma_tune.rl.scoring import Scorer, WeightedReward
from gemma_tune.rl.tasks import Tasks, read_training_prompts
from gemma_tune.rl.trainer import RewardedTrainer, rl_trainer
from gemma_tune.run.folder import RunFolder

CPU = torch.device("cpu")


def spelled(completions: Sequence[Completion], records: Sequence[Task]) -> list[float]:
    """A reward that differs from completion to completion, and hangs on nothing else."""
    return [sum(map(ord, c)) % 7 / 7 for c in completions]


def made(
    recipe: str, folder: Path, *words: str, rewards: Sequence[WeightedReward] = (), samples: list[Any] | None = None
) -> RewardedTrainer:
    """The trainer of a recipe, ready for a step; `samples` takes what it keeps."""
    few = ["model.dtype=float32", "train.bf16=false", "tracker=none", "data.max_train_samples=16", "train.max_steps=2"]
    cfg = compose_config(recipe, [*few, f"output_dir={folder}", *words])
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    base = load_base(cfg.model, source, tokenizer)
    model = adapters.attach(base, cfg.adapter, source)
    cfg.reward.weights = {r.name: r.weight for r in rewards}
    scorer = Scorer(rewards or [WeightedReward("spelled", spelled, 1.0)], 5.0, 1.0)
    arguments = rl_arguments(cfg, RunFolder.open(cfg), CPU)
    arguments.reward_weights = list(scorer.weights.values())
    keep = samples.extend if samples is not None else lambda rows: None
    tasks = Tasks(read_training_prompts(cfg.data, {})[0], tokenizer, 1000)
    trainer = rl_trainer(cfg, arguments, model, tokenizer, tasks, scorer, keep)
    trainer.current_gradient_accumulation_steps = cfg.train.gradient_accumulation_steps
    trainer.model.train()
    return trainer
