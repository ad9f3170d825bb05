"""`tracker=…`: where the run can be followed beside `metrics.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_tune.config.option import option

# Of each tracker the package that it needs.
TRACKERS = {"wandb": "wandb", "tensorboard": "tensorboard", "mlflow": "mlflow", "trackio": "trackio"}


@dataclass
class TrackerConfig:
    """Names are those of W&B's `init`; `report_to` is Transformers'."""

    report_to: Any = option("none", f"none, {', '.join(TRACKERS)}, or a list of several of them.")
    mode: str = option(
        "auto", "W&B. auto: online where a key is configured, else offline.", choices=("auto", "online", "offline")
    )
    project: str = option("gemma_tune", "W&B's and Trackio's project, MLflow's experiment.", longest=128)
    entity: str | None = option(None, "W&B user or team; null: the account's own.", longest=128)
    name: str | None = option(None, "Name of the run there; null: the run folder's.", longest=128)
    group: str | None = option(
        None,
        "Group of runs that belong together (W&B, Trackio; a tag in MLflow); null: that of WANDB_RUN_GROUP, else in a "
        "sweep (-m) the sweep's name.",
        longest=128,
    )
    log_samples: bool = option(False, "Send sample answers, too; they may contain private data.")

    @property
    def names(self) -> list[str]:
        """The trackers, each once; none of `report_to=none`."""
        named = self.report_to if isinstance(self.report_to, list) else [self.report_to]
        return [] if named == ["none"] else list(dict.fromkeys(named))
