"""Which of several processes this one is."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """True on the one process that writes and speaks (rank 0)."""
    return int(os.environ.get("RANK", "0")) == 0
