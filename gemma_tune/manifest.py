"""manifest.json: from what and with what a run was made, so that it can be traced and repeated. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "wandb", "hydra-core",
    "safetensors", "tokenizers",
)  # fmt: skip


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _git_state() -> dict[str, Any] | None:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        # Commit and cleanliness only: a remote's address may hold a token.
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def write_manifest(folder: Path, seed: int, inputs: Mapping[str, str], artifacts: Mapping[str, str]) -> None:
    """Writes versions, seed, git state, and the digests of inputs and artifacts.

    Args:
        folder: The run folder.
        seed: The run's seed.
        inputs: Path → SHA-256 of every input file.
        artifacts: Name → path relative to the run folder; their files' digests are taken here.
    """
    digests = {}
    for name, relative in artifacts.items():
        target = folder / relative
        files = sorted(p for p in target.rglob("*") if p.is_file()) if target.is_dir() else [target]
        digests[name] = {str(f.relative_to(folder)): file_digest(f) for f in files}
    manifest = {
        "gemma_tune": importlib.metadata.version("gemma_tune"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "seed": seed,
        "git": _git_state(),
        "inputs": dict(inputs),
        "artifacts": digests,
    }
    write_json(folder / "manifest.json", manifest)
