"""When two configurations are the same run, and when one may resume the other. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemma_tune.config import Config
from gemma_tune.config.methods import Reads, named_method
from gemma_tune.config.renamed import as_before
from gemma_tune.run.paths import RUNS, without_tilde

# Keys that say how a run is carried out, not what it computes, and those of recipes that keep no run folder:
# they don't change its folder.
OPERATIONAL = (
    "output_dir", "overwrite", "dry_run", "chat", "preview", "doctor", "copy", "plan", "models", "serve", "push",
    "launch", "parallel",
)  # fmt: skip
# Keys of `train` that may change when a run is resumed. Its length may not: the schedule of the learning rate depends
# on it, and the stored configuration would not repeat the run.
RESUMABLE = ("save_steps", "save_total_limit", "eval_steps", "logging_steps")

# Keys of `train` that say how a run goes on and when it pauses, with their defaults.
_OF_RESUMING = {"resume_from_checkpoint": "auto", "resume_data_changed": False, "max_time": None}
# Runs are the same in whatever sweep they are tracked.
_OF_TRACKING = ("group",)


def identity(cfg: Config) -> dict[str, Any]:
    """The configuration without what does not change the run's outcome, and with the batch of all processes."""
    return identity_of(asdict(cfg))


def identity_of(tree: dict[str, Any]) -> dict[str, Any]:
    """As `identity`, of a stored configuration's tree."""
    return _with_global_batch(_without_operational(tree), processes_of(tree))


def _without_operational(tree: dict[str, Any]) -> dict[str, Any]:
    tree = {k: v for k, v in tree.items() if k not in OPERATIONAL}
    for group, left_out in (("train", _OF_RESUMING), ("tracker", _OF_TRACKING)):
        if isinstance(values := tree.get(group), dict):
            tree[group] = {k: v for k, v in values.items() if k not in left_out}
    return tree


def processes_of(tree: dict[str, Any]) -> int:
    """Processes of a stored configuration; of an earlier version 1."""
    launch = tree.get("launch") or {}
    return (launch.get("num_processes") or 1) * (launch.get("num_nodes") or 1)


def _with_global_batch(tree: dict[str, Any], processes: int) -> dict[str, Any]:
    """The configuration with the batch of an optimizer step in one forward pass of one process.

    Two runs with the same batch are the same, whether it comes from one forward pass, from accumulation or from several
    processes. KTO is the exception: it estimates a KL from the answers of one forward pass of all processes.
    """
    train, quant = tree.get("train"), tree.get("quant")
    if not isinstance(train, dict):
        return tree
    passes = train.get("gradient_accumulation_steps") or 1
    method = named_method(tree)
    joined = processes if method and method.reads is Reads.LABELLED else processes * passes
    batch = {"gradient_accumulation_steps": passes * processes // joined}
    if per_generation := train.get("steps_per_generation"):
        batch["steps_per_generation"] = None if per_generation == passes else per_generation / passes
    tree = {**tree, "train": _times(train, joined) | batch}
    if isinstance(quant, dict) and isinstance(quant.get("stage2"), dict):
        tree["quant"] = {**quant, "stage2": _times(quant["stage2"], joined)}
    return tree


def _times(values: dict[str, Any], number: int) -> dict[str, Any]:
    rows = values.get("per_device_train_batch_size")
    return values if rows is None else {**values, "per_device_train_batch_size": rows * number}


def as_one_run(cfg: Config) -> dict[str, Any]:
    """The configuration as stored: without what says how it goes on, so that `rerun=` repeats the run from step 0."""
    tree = asdict(cfg)
    tree["train"] |= _OF_RESUMING
    return tree


def not_resumable(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Keys that differ though a resumed run must not change them: all but those of evaluation and checkpoints."""
    found = []
    for group in ("recipe", "recipe_file", "method", "seed", "model", "adapter", "data", "train", "quant", "reward"):
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


def folder_of(cfg: Config) -> Path:
    """`output_dir`, or `runs/<recipe>-<8 hex digits>`: every configuration has a folder of its own.

    A run that an earlier version has left there, with earlier names of keys in its configuration, keeps its folder.
    """
    if cfg.output_dir:
        return without_tilde(cfg.output_dir)
    trees = identity(cfg), as_before(_without_operational(asdict(cfg)))
    digests = [hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8] for tree in trees]
    now, before = (Path(RUNS) / f"{cfg.recipe}-{digest}" for digest in digests)
    return before if before.exists() and not now.exists() else now
