"""Processor, memory, disk, and whether the run folder can be written."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from gemma_tune.cores import allowed_cores
from gemma_tune.doctor.findings import Finding, broken, limits, works
from gemma_tune.run.paths import RUNS, existing_folder, free_disk

_GIB = 2**30
_LEAST, _MODEL = 1.0, 20.0  # GiB of a disk: for a small run; for a model of 4B, its checkpoints and exports
_MEMORY = 4.0  # GiB: Python, torch and a model of 270M


def machine() -> Iterator[Finding]:
    """Python, the processor's cores and the memory."""
    system = f"{platform.system()} {platform.machine()}"
    python = f"Python {platform.python_version()} on {system}"
    if platform.system() == "Windows":
        yield limits("system", python, "Windows is not tested: use WSL 2.")
    else:
        yield works("system", python)
    memory = psutil.virtual_memory()
    said = f"{allowed_cores()} cores; {memory.total / _GIB:.1f} GiB of memory, {memory.available / _GIB:.1f} free"
    if memory.available < _MEMORY * _GIB:
        yield limits("processor", said, f"Less than {_MEMORY:g} GiB: only the smallest models fit. End other programs.")
    else:
        yield works("processor", said)


def disks(cache: Path) -> Iterator[Finding]:
    """Free space where runs, downloads and scratch files go.

    Args:
        cache: The Hub's cache.
    """
    for name, folder, key in (
        ("runs", Path(RUNS), "output_dir=…"),
        ("Hub cache", cache, "HF_HOME=…"),
        ("scratch", Path(tempfile.gettempdir()), "TMPDIR=…"),
    ):
        there, free = existing_folder(folder), free_disk(folder) / _GIB
        said, way = f"{folder.absolute()}: {free:.1f} GiB free", f"or name a folder on another disk: {key}"
        if not os.access(there, os.W_OK | os.X_OK):
            yield broken(name, f"{there} can't be written", f"Get the right to write there, {way}")
        elif free < _LEAST:
            yield broken(name, said, f"Make room, {way}")
        elif free < _MODEL and name != "scratch":
            yield limits(name, said, f"A model of 4B, checkpoints and exports need {_MODEL:g} GiB: make room, {way}")
        else:
            yield works(name, said)
