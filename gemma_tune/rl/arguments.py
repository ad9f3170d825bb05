"""From our configuration to GRPOConfig and RLOOConfig."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl import GRPOConfig, RLOOConfig

from gemma_tune.config import Config
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.arguments import arguments

_ONLY_GRPO = ("loss_type", "scale_rewards", "importance_sampling_level")
_BOTH = (
    "num_generations", "max_completion_length", "temperature", "num_iterations", "steps_per_generation", "epsilon",
    "epsilon_high", "mask_truncated_completions", "use_vllm", "vllm_mode", "beta",
)  # fmt: skip


def rl_arguments(
    cfg: Config, folder: RunFolder, device: torch.device, stops: Sequence[int] = ()
) -> GRPOConfig | RLOOConfig:
    """The trainer's arguments; what is null is left to TRL.

    Args:
        cfg: The configuration.
        folder: The run folder.
        device: Where it is trained.
        stops: The ids that end an answer. vLLM is told; Transformers has them in the model's generation config.

    Raises:
        UserError: TRL refuses a value.
    """
    grpo = cfg.traits.trainer == GRPOConfig.__name__
    named = {name: getattr(cfg.train, name) for name in (*_BOTH, *(_ONLY_GRPO if grpo else ()))}
    own: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if grpo:
        own["use_bias_correction_kl"] = False  # TRL's default weighs the KL by the ratio, which no paper of GRPO's does
    own |= {
        "reward_weights": list(cfg.reward.weighted().values()),
        "log_completions": False,  # would print tables between the bar's lines; ours are in eval/completions.jsonl
    }
    made = arguments(GRPOConfig if grpo else RLOOConfig, cfg, folder, device, own)
    if cfg.train.use_vllm:
        made.generation_kwargs = {"stop_token_ids": list(stops), **(made.generation_kwargs or {})}
    return made
