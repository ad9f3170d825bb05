"""Builds GRPOConfig and RLOOConfig from our configuration."""

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
    """The trainer's arguments; null values keep TRL's default.

    Args:
        cfg: The configuration.
        folder: The run folder.
        device: The device to train on.
        stops: Ids of the stop tokens, for vLLM; Transformers reads them from the model's generation config.

    Raises:
        UserError: TRL rejects a value.
    """
    grpo = cfg.traits.trainer == GRPOConfig.__name__
    named = {name: getattr(cfg.train, name) for name in (*_BOTH, *(_ONLY_GRPO if grpo else ()))}
    own: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if grpo:
        own["use_bias_correction_kl"] = False  # TRL's default weights the KL by the ratio, unlike the GRPO papers
    own |= {
        "reward_weights": list(cfg.reward.weighted().values()),
        "log_completions": False,  # it would break the progress bar; ours are in eval/completions.jsonl
        "per_device_eval_batch_size": cfg.train.num_generations,  # whole groups, of which none are evaluated
    }
    made = arguments(GRPOConfig if grpo else RLOOConfig, cfg, folder, device, own)
    if cfg.train.use_vllm:
        made.generation_kwargs = {"stop_token_ids": list(stops), **(made.generation_kwargs or {})}
    return made
