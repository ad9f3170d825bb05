"""The rewards of a configuration, ready to score."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from gemma_tune.chat import media_in
from gemma_tune.config import Config
from gemma_tune.config.reward import ModelReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Reward, Task
from gemma_tune.rl import own_rewards
from gemma_tune.rl.scoring import Scorer, WeightedReward
from gemma_tune.run.paths import reward_model_of

_OWN_LIMITS = ("code", "model")


def scorer_of(cfg: Config, device: torch.device, tasks: Sequence[Task]) -> Scorer:
    """The rewards of `reward`, with their weights.

    Args:
        cfg: The configuration.
        device: The device of a reward model.
        tasks: Rows to be scored, as `check_own_rewards` takes them.

    Raises:
        UserError: A reward that can't be used: a missing package, sandbox, file or function.
    """
    found = []
    for name, weight in cfg.reward.weighted().items():
        reward = _prepared(name, cfg, device, tasks)
        found.append(WeightedReward(name, reward, weight, limited=name not in _OWN_LIMITS))
    return Scorer(found, cfg.reward.timeout, cfg.reward.max_failure_share)


def check_own_rewards(cfg: Config, tasks: Sequence[Task] | None = None) -> None:
    """Raises UserError if a function of `reward.functions` can't be loaded, or can't be called as it is written.

    Args:
        cfg: The configuration.
        tasks: The rows to be scored, whose fields a function may ask for by name; None: these names aren't checked.
    """
    for name in cfg.reward.weighted():
        if name in cfg.reward.functions:
            own_rewards.prepare(cfg.reward.functions[name], f"reward.functions.{name}", tasks)


def _prepared(name: str, cfg: Config, device: torch.device, tasks: Sequence[Task]) -> Reward:
    if name in cfg.reward.functions:
        return own_rewards.prepare(cfg.reward.functions[name], f"reward.functions.{name}", tasks)
    options = getattr(cfg.reward, name)
    if name == "model":
        if seeing := next((task.where for task in tasks or () if media_in(list(task.prompt))), None):
            raise UserError(f"reward.model: it reads text alone, and the prompt of {seeing} has an image or sound.")
        return _model(options.model_name_or_path, options.batch_size, device)
    reward: Reward = importlib.import_module(f"gemma_tune.rewards.{name}").prepare(options)
    return reward


@functools.lru_cache(maxsize=1)
def _model(name: str, batch_size: int, device: torch.device) -> Reward:
    """The reward model, loaded once for training and evaluation."""
    prepare: Callable[..., Reward] = importlib.import_module("gemma_tune.rl.reward_model").prepare
    return prepare(ModelReward(model_name_or_path=name, batch_size=batch_size), device)


def size_of_reward_model(cfg: Config) -> float:
    """GiB of the reward model's files on this machine; 0 without a reward model, or before it is downloaded."""
    if not cfg.reward.model.weight:
        return 0.0
    place = reward_model_of(str(cfg.reward.model.model_name_or_path))
    try:
        folder = place if place.is_dir() else Path(snapshot_download(str(place), local_files_only=True))
    except (OSError, ValueError):  # huggingface_hub's errors are one or the other
        return 0.0
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**30
