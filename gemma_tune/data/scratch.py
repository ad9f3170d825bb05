"""Where rows are kept on disk while a run needs them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_tune.errors import UserError
from gemma_tune.run.paths import without_tilde

_LOCK = ".in-use"


class ScratchFolder(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
    """A folder that is deleted with the object; a lock in it says that its process lives."""

    def __init__(self, parent: Path | None) -> None:
        super().__init__(prefix="gemma_tune-", dir=parent)
        self._lock = Path(self.name, _LOCK).open("w")  # noqa: SIM115 (held as long as the object)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process of the run: it reads what is there, and this one deletes it."""
        return _FolderOfAnother, (self.name,)


@dataclass(frozen=True)
class _FolderOfAnother:
    """The folder of another process of the same run.

    Attributes:
        name: Its path.
    """

    name: str


def scratch_folder() -> ScratchFolder:
    """A folder in the cache of `datasets`, since `/tmp` may be memory itself.

    Where the cache can't be written, the folder is one of the system's temporary ones. What processes that were killed
    have left in the cache is deleted.
    """
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = without_tilde(os.environ.get("HF_DATASETS_CACHE") or Path(home, "datasets"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob("gemma_tune-*"):
            if _is_left(left / _LOCK):
                shutil.rmtree(left, ignore_errors=True)
        return ScratchFolder(cache)
    except OSError:
        return ScratchFolder(None)


def _is_left(lock: Path) -> bool:
    """Whether the process that made a folder is gone; of a folder without a lock nobody knows."""
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def no_room(what: str, error: OSError) -> UserError:
    """The message about rows that can't be written there; `what` says which."""
    return UserError(
        f"{what} can't be written to the cache of `datasets` ({error.strerror or error}); set HF_DATASETS_CACHE to a "
        "folder on a disk with room, or stream the rows: data.streaming=true."
    )
