"""From our configuration to GRPOConfig and RLOOConfig."""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOConfig, RLOOConfig

from gemma_tune.config import Config
from gemma_tune.runfolder import RunFolder
from gemma_tune.train.arguments import arguments

_ONLY_GRPO = ("loss_type", "scale_rewards", "importance_sampling_level")
_BOTH = (
    "num_generations", "max_completion_length", "temperature", "num_iterations", "steps_per_generation", "epsilon",
    "epsilon_high", "mask_truncated_completions", "use_vllm", "vllm_mode", "beta",
)  # fmt: skip


def rl_arguments(cfg: Config, folder: RunFolder, device: torch.device) -> GRPOConfig | RLOOConfig:
    """The trainer's arguments; what is null is left to TRL.

    Raises:
        UserError: TRL refuses a value.
    """
    grpo = cfg.train.algorithm == "grpo"
    named = {name: getattr(cfg.train, name) for name in (*_BOTH, *(_ONLY_GRPO if grpo else ()))}
    own: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    own |= {
        "reward_weights": list(cfg.reward.weighted().values()),
        "log_completions": False,  # would print tables between the bar's lines; ours are in eval/completions.jsonl
    }
    return arguments(GRPOConfig if grpo else RLOOConfig, cfg, folder, device, own)
