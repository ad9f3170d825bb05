"""Opens compressed files: gzip, Zstandard, bzip2 and xz, recognised by their first bytes; all members are read."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemma_tune.data.records import BadRow
from gemma_tune.run.paths import COMPRESSED, file_type

_CHUNK = 1 << 17
# A file whose content is so many times its size, and more than so many bytes, is a trap and no data set: rows come to
# 3 to 20 times; with the same long system prompt in each, to 100. Files that are held whole in memory have a lower one.
_TIMES, _TIMES_WHOLE, _AT_LEAST = 200, 50, 64 << 20
_WHOLE = (".json", ".parquet", ".arrow")
_XZ_MEMORY = 256 << 20  # bytes; xz -9 needs 65 MiB


class _XzStreams(io.RawIOBase):
    """The content of all streams of an xz file. `lzma.LZMAFile` leaves out, without a word, what follows the first
    stream and is none."""

    def __init__(self, file: io.BufferedReader[Any]) -> None:
        self._file = file
        self._decoder: lzma.LZMADecompressor | None = None
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        view = memoryview(into).cast("B")
        while True:
            if self._decoder is None or self._decoder.eof:
                rest = (self._decoder.unused_data if self._decoder else b"") or self._file.read(_CHUNK)
                # xz allows zeros between streams, by fours
                while rest and not rest.strip(b"\0"):
                    rest = self._file.read(_CHUNK)
                if not rest:
                    return 0
                self._decoder, self._rest = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY), rest.lstrip(b"\0")
            given = b""
            if self._decoder.needs_input:
                given = self._rest or self._file.read(_CHUNK)
                self._rest = b""
                if not given:
                    raise EOFError("it ends too early")
            made = self._decoder.decompress(given, len(view))
            if made:
                view[: len(made)] = made
                return len(made)


def _arrow(codec: str) -> Callable[[io.BufferedReader[Any]], Any]:
    def opened(file: io.BufferedReader[Any]) -> Any:
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)

    return opened


# By suffix: name, what its files begin with, how they are opened
_KINDS: dict[str, tuple[str, tuple[bytes, ...], Callable[[io.BufferedReader[Any]], Any]]] = {
    ".gz": ("gzip", (b"\x1f\x8b",), lambda file: gzip.GzipFile(fileobj=file)),
    # The second may begin a file: a frame to be skipped, of pzstd for example
    ".zst": ("Zstandard", (b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60))),
             _arrow("zstd")),
    ".bz2": ("bzip2", tuple(b"BZh%d" % n + m for n in range(1, 10) for m in (b"1AY&SY", b"\x17rE8P\x90")),
             _arrow("bz2")),
    ".xz": ("xz", (b"\xfd7zXZ\x00",), _XzStreams),
}  # fmt: skip
assert tuple(_KINDS) == COMPRESSED


@contextmanager
def decompressed(path: Path, file: io.BufferedReader[Any]) -> Iterator[io.BufferedReader[Any]]:
    """The content of a file, decompressed if it begins as a compressed file does, whatever its name is.

    Raises:
        BadRow: It is named as a compressed file and is none; or its content ends too early or is spoilt.
    """
    start = file.peek(10)
    kind = next((suffix for suffix, (_, begins, _) in _KINDS.items() if start.startswith(begins)), None)
    if kind is None:
        named = path.suffix.lower()
        if start and named in _KINDS:
            raise _not_whole(path, named, "it doesn't begin as one")
        yield file
        return
    status = os.fstat(file.fileno())
    times = _TIMES_WHOLE if file_type(path) in _WHOLE else _TIMES
    most = max(_AT_LEAST, times * status.st_size) if stat.S_ISREG(status.st_mode) else None
    stream = _Decompressed(_KINDS[kind][2](file), most)
    try:
        yield io.BufferedReader(stream, _CHUNK)
    except _Spoilt as error:
        raise _not_whole(path, kind, str(error)) from error
    except _Bomb as error:
        raise BadRow(
            f"{path}: this {_KINDS[kind][0]} file holds more than {times} times its own {status.st_size:,} bytes: it "
            "may be made to fill the memory. If it is your own, decompress it and name the result."
        ) from error


def _not_whole(path: Path, kind: str, why: str) -> BadRow:
    return BadRow(f"{path}: this is no whole {_KINDS[kind][0]} file ({why}).")


class _Spoilt(Exception):
    """Compressed data that can't be read on."""


class _Bomb(Exception):
    """Compressed data that hold far more than data sets do."""


class _Decompressed(io.RawIOBase):
    """A decompressed stream whose errors are told from those of the file itself."""

    def __init__(self, stream: Any, most: int | None) -> None:
        self._stream, self._most, self._made = stream, most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        try:
            made = int(self._stream.readinto(into))
            self._made += made
            if self._most is not None and self._made > self._most:
                raise _Bomb
            return made
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise _Spoilt(str(error)) from error
        except OSError as error:
            if error.errno is None:  # of Arrow's decompressors
                raise _Spoilt(str(error)) from error
            raise
