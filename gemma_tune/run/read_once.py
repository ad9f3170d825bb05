"""Small JSON files that several parts of a run ask for, opened once. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from gemma_tune.run.manifest import file_version, remember_digest
from gemma_tune.untrusted import parse_json, read_bytes

# By absolute path: the file's version when it was read, and its bytes
_KEPT: dict[Path, tuple[object, bytes]] = {}


def read_json(path: Path) -> Any:
    """A JSON file's content, each time a value of its own; the file is opened again only after it has changed.

    Raises:
        OSError: It can't be read.
        ValueError: It is not JSON, not UTF-8, or too large (`untrusted`).
    """
    version = file_version(path)
    kept, stored = _KEPT.get(path.absolute(), (None, b""))
    if version is None or version != kept:
        stored = read_bytes(path)
        _KEPT[path.absolute()] = version, stored
        remember_digest(path, version, hashlib.sha256(stored).hexdigest())
    return parse_json(stored)
