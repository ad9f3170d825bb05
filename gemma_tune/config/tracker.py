"""`tracker=…`: where the run can be followed beside `metrics.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class TrackerConfig:
    """Names are those of W&B's `init`; `report_to` is Transformers'."""

    report_to: str = option("none", "none or wandb.", choices=("none", "wandb"))
    mode: str = option(
        "auto", "auto: online where a key is configured, else offline.", choices=("auto", "online", "offline")
    )
    project: str = option("gemma_tune", "W&B project.", longest=128)
    entity: str | None = option(None, "W&B user or team; null: the account's own.", longest=128)
    name: str | None = option(None, "Name of the W&B run; null: the run folder's.", longest=128)
    group: str | None = option(
        None,
        "W&B group of runs that belong together; null: that of WANDB_RUN_GROUP, else in a sweep (-m) the sweep's name.",
        longest=128,
    )
    log_samples: bool = option(False, "Send sample answers to W&B, too; they may contain private data.")
