"""How many processors this process may use."""

from __future__ import annotations

import os


def allowed_cores() -> int:
    """By its affinity where the system knows one, else all of the machine; at least one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
