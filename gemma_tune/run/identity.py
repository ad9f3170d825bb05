"""When two configurations are the same run, and when one may resume the other. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gemma_tune.config import Config

# Keys that say how a run is carried out, not what it computes, and those of `recipe=chat` and `recipe=preview`: they
# don't change its folder.
OPERATIONAL = ("output_dir", "overwrite", "dry_run", "chat", "preview")
# Keys of `train` that may change when a run is resumed. Its length may not: the schedule of the learning rate depends
# on it, and the stored configuration would not repeat the run.
RESUMABLE = ("save_steps", "save_total_limit", "eval_steps", "logging_steps")


def identity(cfg: Config) -> dict[str, Any]:
    """The configuration without what does not change the run's outcome."""
    return without_operational(asdict(cfg))


def without_operational(tree: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration's tree without the same keys."""
    tree = {k: v for k, v in tree.items() if k not in OPERATIONAL}
    train = tree.get("train")
    if isinstance(train, dict):
        tree["train"] = {k: v for k, v in train.items() if k != "resume_from_checkpoint"}
    return tree


def as_one_run(cfg: Config) -> dict[str, Any]:
    """The configuration as stored: without resume_from_checkpoint, so that `rerun=` repeats the run from step 0."""
    tree = asdict(cfg)
    tree["train"]["resume_from_checkpoint"] = None
    return tree


def not_resumable(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Keys that differ though a resumed run must not change them: all but those of evaluation and checkpoints."""
    found = []
    for group in ("recipe", "method", "seed", "model", "adapter", "data", "train"):
        a, b = mine[group], theirs.get(group)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{group}.{k}" for k in a if a[k] != b.get(k) and k not in RESUMABLE]
        elif a != b:
            found.append(group)
    if mine["train"]["metric_for_best_model"]:  # these decide which step is the best one
        a, b = mine["train"], theirs.get("train", {})
        found += ["train.eval_steps"] if a["eval_steps"] != b.get("eval_steps") else []
        found += ["eval"] if mine["eval"] != theirs.get("eval") else []
    return found
