"""The SHA-256 of a file, taken while the file is read."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


class HashedFile(io.RawIOBase):
    """An open file that hashes what is read of it, each byte once, wherever the reader goes back or skips ahead.

    Readers that wrap it may close it: the file itself stays open until `release`, so that `digest` can read the rest.

    Raises:
        OSError: The file can't be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._sha = hashlib.sha256()
        self._hashed = 0  # bytes from the file's beginning

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """As every file does it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As every file does it."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """Reads into a buffer, and hashes what is new of it."""
        begin = self._file.tell()
        count = self._file.readinto(buffer) or 0
        if begin <= self._hashed < begin + count:
            self._sha.update(memoryview(buffer)[self._hashed - begin : count])
            self._hashed = begin + count
        return count

    def digest(self) -> str:
        """SHA-256 of the whole file, in hex; what was not read yet is read here."""
        self._file.seek(self._hashed)
        while chunk := self._file.read(_CHUNK):
            self._sha.update(chunk)
            self._hashed += len(chunk)
        return self._sha.hexdigest()

    def release(self) -> None:
        """Closes the file."""
        self._file.close()
