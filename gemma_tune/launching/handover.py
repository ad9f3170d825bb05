"""What the starting process and its workers hand each other: the configuration, and why a worker ended. No torch.

Both stand in a temporary folder that only this user can read.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemma_tune.config import Config
from gemma_tune.untrusted import read_object

_CONFIG = "config.json"


def write_config(folder: Path, cfg: Config) -> None:
    """Writes the checked configuration, with mode 0600."""
    descriptor = os.open(folder / _CONFIG, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(cfg), file)


def read_config(folder: Path) -> dict[str, Any]:
    """The tree of the configuration."""
    tree: dict[str, Any] = read_object(folder / _CONFIG)
    return tree


def write_message(folder: Path, rank: int, message: str) -> None:
    """Leaves why a worker ended."""
    (folder / f"rank-{rank}.json").write_text(json.dumps({"message": message}), encoding="utf-8")


def read_message(folder: Path, rank: int) -> str:
    """Why a worker ended; empty where it has left nothing."""
    try:
        return str(read_object(folder / f"rank-{rank}.json")["message"])
    except (OSError, ValueError, KeyError):
        return ""
