"""`parallel=fsdp2` as options of Transformers' Trainer."""

from __future__ import annotations

from typing import Any

from gemma_tune.config import Config
from gemma_tune.models.sharding import ACCUMULATION, sharding_of, shards


def sharding_arguments(cfg: Config) -> dict[str, Any]:
    """The options that turn FSDP2 on; none where each process has the whole model."""
    if not shards(cfg):
        return {}
    sharding, parallel = sharding_of(cfg), cfg.parallel
    found: dict[str, Any] = {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "state_dict_type": "SHARDED_STATE_DICT",
            "reshard_after_forward": parallel.reshard_after_forward,
            "activation_checkpointing": parallel.activation_checkpointing,
            "cpu_ram_efficient_loading": False,  # models/sharded.py does it
        },
        "accelerator_config": {"gradient_accumulation_kwargs": dict(ACCUMULATION)},
    }
    if sharding.copies > 1:
        from accelerate.parallelism_config import ParallelismConfig

        found["parallelism_config"] = ParallelismConfig(
            dp_replicate_size=sharding.copies, dp_shard_size=sharding.shards
        )
    return found
