"""Where rows are kept on disk while a run needs them."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

import psutil

from gemma_tune.errors import UserError


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that is deleted with the object: in the cache of `datasets`, since `/tmp` may be memory itself.

    Where the cache can't be written, the folder is one of the system's temporary ones. What processes of this machine
    have left there that were killed is deleted.
    """
    host = f"gemma_tune-{socket.gethostname()}-"
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(home, "datasets")).expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(f"{host}*"):
            owner = left.name.removeprefix(host).partition("-")[0]
            if owner.isdigit() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(left, ignore_errors=True)
        return tempfile.TemporaryDirectory(prefix=f"{host}{os.getpid()}-", dir=cache)
    except OSError:
        return tempfile.TemporaryDirectory(prefix="gemma_tune-")


def no_room(what: str, error: OSError) -> UserError:
    """The message about rows that can't be written there; `what` says which."""
    return UserError(
        f"{what} can't be written to the cache of `datasets` ({error.strerror or error}); set HF_DATASETS_CACHE to a "
        "folder on a disk with room, or stream the rows: data.streaming=true."
    )
