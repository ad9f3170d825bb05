"""Media that rows hold as bytes, kept beside an evaluation: where they were written goes with the process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gemma_tune.data.media_parts import is_stored

_MOST = 64 << 20  # bytes of all that is kept of a run


def keep_media(rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Copies media that only this process has, at most 64 MiB of them; the rows then name the copies.

    Args:
        rows: Rows of an evaluation, whose `media` are changed in place.
        folder: Where the copies lie, by the names of the files; made where it is needed.

    Raises:
        OSError: A file can't be read or written.
    """
    left = _MOST - sum(file.stat().st_size for file in folder.glob("*"))
    for entry in (entry for row in rows for entry in row.get("media") or ()):
        if not (isinstance(entry, dict) and is_stored(path := str(entry.get("path")))):
            continue
        kept = folder.absolute() / os.path.basename(path)
        if not kept.exists():
            if (size := os.path.getsize(path)) > left:
                continue
            left -= size
            folder.mkdir(parents=True, exist_ok=True)
            part = shutil.copyfile(path, kept.with_name(f"{kept.name}.partial"))
            os.replace(part, kept)
        entry["path"] = str(kept)
