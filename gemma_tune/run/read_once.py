"""Small JSON files that several parts of a run ask for, opened once. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gemma_tune.run.manifest import file_version, remember_digest

# By absolute path: the file's version when it was read, and its bytes
_KEPT: dict[Path, tuple[object, bytes]] = {}


def read_json(path: Path) -> Any:
    """A JSON file's content, each time a value of its own; the file is opened again only after it has changed.

    Raises:
        OSError: It can't be read.
        ValueError: It is not JSON, or not UTF-8.
    """
    version = file_version(path)
    kept, stored = _KEPT.get(path.absolute(), (None, b""))
    if version is None or version != kept:
        stored = path.read_bytes()
        _KEPT[path.absolute()] = version, stored
        remember_digest(path, version, hashlib.sha256(stored).hexdigest())
    return json.loads(stored.decode("utf-8"))
