"""Programs outside of Python: the driver of an NVIDIA GPU."""

from __future__ import annotations

import shutil
import subprocess


def nvidia_driver(seconds: float) -> str | None:
    """The version of the driver, as nvidia-smi says it; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return "that doesn't answer"
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None
