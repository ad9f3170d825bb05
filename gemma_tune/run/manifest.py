"""manifest.json: from what and with what a run was made, so that it can be traced and repeated. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
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


# torch.save's archive says only that a write stopped short.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "PytorchStreamWriter failed writing", "unexpected pos ")


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or its cause, means a full disk; libraries in C++ and Rust say so only in the message."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(said in str(seen) for said in _FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


# Digests that were taken while a file was read for another purpose: path → version, SHA-256
_KNOWN: dict[Path, tuple[object, str]] = {}


def file_version(path: Path) -> tuple[int, ...] | None:
    """What changes with a file's content, as far as the file system tells; None where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def remember_digest(path: Path, version: object, digest: str) -> None:
    """Spares `file_digest` the reading of a file, as long as its `file_version` is the same."""
    _KNOWN[path.absolute()] = version, digest


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    version, known = _KNOWN.get(path.absolute(), (None, ""))
    if version is not None and version == file_version(path):
        return known
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


def atomic_write(path: Path, text: str) -> None:
    """Writes a text file completely, or leaves it as it was.

    Raises:
        OSError: It can't be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # else a power cut may leave an empty file under the name
        partial.replace(path)
    except BaseException:  # Ctrl-C, too
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as `atomic_write` does."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """The versions of gemma_tune, Python, and the packages that a result depends on."""
    found = {package: importlib.metadata.version(package) for package in ("gemma_tune", *PACKAGES)}
    return {"python": sys.version.split()[0], **found}


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
    found = versions()
    manifest = {
        "gemma_tune": found["gemma_tune"],
        "python": found["python"],
        "platform": platform.platform(),
        "versions": {p: found[p] for p in PACKAGES},
        "seed": seed,
        "git": _git_state(),
        "inputs": dict(inputs),
        "artifacts": digests,
    }
    write_json(folder / "manifest.json", manifest)
