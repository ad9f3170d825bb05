"""Checkpoints on disk: each lists the digests of its files, so that a damaged one is never resumed from. No torch."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import xxhash

from gemma_tune.untrusted import read_object

CHECKPOINT = re.compile(r"^step-(\d+)$")
DIGESTS = "digests.json"  # written last
STATE = "trainer_state.json"
SHARDS = "pytorch_model_fsdp_0"  # accelerate's name of the folder with a part of the weights from each process
_OPTIMIZER = ("optimizer.pt", "optimizer_0")  # of a process that has all of it, and of several with a part each
_BLOCK = 1 << 22


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = [p for p in folder.glob("step-*") if CHECKPOINT.match(p.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done at a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def seal(folder: Path) -> None:
    """Writes the list of digests, and has the disk take everything: afterwards no power cut makes half a checkpoint.

    The digests are xxh3 with 128 bits: they find every accident, at memory speed, and no forgery.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != DIGESTS)
    listed = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "xxh3_128": _digest(p)} for p in files}
    text = json.dumps({"files": listed, "digest": _digest_of(listed)}, indent=1) + "\n"
    (folder / DIGESTS).write_text(text, encoding="utf-8")
    for path in (*files, folder / DIGESTS, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        to_disk(path)


def to_disk(path: Path) -> None:
    """Has the disk take a file or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def damage(folder: Path) -> str | None:
    """Which file of a checkpoint is damaged, and how; None where all are as they were written."""
    try:
        stored = read_object(folder / DIGESTS)
        listed: dict[str, Any] = stored["files"]
        if stored["digest"] != _digest_of(listed):
            return f"{DIGESTS} is damaged"
    except FileNotFoundError:
        return f"{DIGESTS} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{DIGESTS} is damaged"
    for name, written in listed.items():
        try:
            size = (folder / name).stat().st_size
            if size != written["bytes"]:
                return f"{name} has {size:,} bytes and was written with {written['bytes']:,}"
            if _digest(folder / name) != written["xxh3_128"]:
                return f"{name} is damaged (its digest is another one)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
    return None


def is_of_shards(checkpoint: Path) -> bool:
    """Whether each process has written a part of the weights (parallel=fsdp2)."""
    return (checkpoint / SHARDS).is_dir()


def has_optimizer(checkpoint: Path) -> bool:
    """Whether training can go on from it: one that was kept for its weights alone has no optimizer's state."""
    return any((checkpoint / name).exists() for name in _OPTIMIZER)


def state_of(checkpoint: Path) -> dict[str, Any]:
    """The trainer's state in a checkpoint that is whole."""
    return read_object(checkpoint / STATE, values=20_000_000)  # a long training has logged as much


def is_at_the_end(state: dict[str, Any]) -> bool:
    """Whether nothing is left to train after this state: it is of the last step, or of an early stop."""
    stopped = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {}).get("should_training_stop")
    return bool(state["global_step"] >= state["max_steps"] or stopped)


def _digest(path: Path) -> str:
    found = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _digest_of(listed: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(listed, sort_keys=True).encode()).hexdigest()
