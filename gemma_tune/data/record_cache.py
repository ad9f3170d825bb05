"""A cache on disk of the records of a run's files: each file is opened, recognised, parsed, checked and hashed once.

The first pass over a file stores its records on disk, pickled, and later passes read them from there. A pass that stops
early, such as the check of the first rows, is continued by the next one. Memory doesn't grow with the number of rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import pickle
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.file_rows import FileOptions, Row
from gemma_tune.data.files import read_file
from gemma_tune.data.formats.auto import recognise_format, refuse_rows
from gemma_tune.data.known_fields import HISTORY, SYSTEM, TOOLS
from gemma_tune.data.own_reader import own_records
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields
from gemma_tune.data.scratch import no_room, scratch_folder
from gemma_tune.data.sources import OpenRows, Source, folder_of
from gemma_tune.run.manifest import file_version, remember_digest
from gemma_tune.run.paths import resolve


class SourceRecords:
    """The records of a file or of a Hub split, parsed anew on every pass.

    Args:
        source: The file or the split.
        data: How it is read.
        hashed: Whether the SHA-256 of a file that is read to its end is remembered for the manifest.

    Attributes:
        format: The recognised format (`data=auto`), set before the first record is yielded.
    """

    def __init__(self, source: Source, data: DataConfig, hashed: bool = False) -> None:
        self.format: str | None = None
        self._source = source
        self._data = data
        self._hashed = hashed
        self._beside: dict[str, Any] = {}  # the fields of a file beside its rows, once the first row is read

    def __iter__(self) -> Iterator[Record | BadRow]:
        thinking, prompts_only = self._data.enable_thinking, self._data.prompts_only
        for row in self._read():
            if self._beside and isinstance(row, Record):
                row, self._beside = self._with_beside(row), {}
            if (thinking or prompts_only) and isinstance(row, Record):
                asks = bool(prompts_only and row.messages and row.messages[-1]["role"] != "assistant")
                row = replace(row, thinking=thinking, unanswered=asks)
            yield row

    def _read(self) -> Iterator[Record | BadRow]:
        name = self._data.format
        if ":" in name:
            return own_records(self._source, self._data)
        rows = self._rows()
        if name == "auto":
            self.format, rows = recognise_format(rows, self._data)
            if self.format is None:
                return refuse_rows(rows, self._data)
            name = self.format
        reader = importlib.import_module(f"gemma_tune.data.formats.{name}")
        records: Iterator[Record | BadRow] = reader.read(OpenRows(rows, folder_of(self._source)), self._data)
        return records

    def _with_beside(self, first: Record) -> Record:
        """The first record of a file, with the names of the file's fields that no row gets.

        Raises:
            BadRow: One of them has a meaning that rows should have got.
        """
        fields = RowFields(str(self._source), self._beside, self._data.ignore_fields)
        if known := fields.named([*SYSTEM, *TOOLS, HISTORY]):
            raise BadRow(
                f"{self._source}: the field {known[0]!r} stands beside the rows, and no row gets it: write it into "
                f"each row, or set data.ignore_fields=[{known[0]}]."
            )
        unused = fields.left(conversation=first.text is None)
        return first.with_remarks(beside=unused, ignored=(*first.ignored, *fields.ignored))

    def _rows(self) -> Iterator[Row | BadRow]:
        if not isinstance(self._source, Path):
            return self._source.rows()
        options = FileOptions.of(self._data)
        self._beside = options.beside
        return _hashed_rows(self._source, options) if self._hashed else read_file(self._source, options=options)


def _hashed_rows(path: Path, options: FileOptions) -> Iterator[Row | BadRow]:
    """The rows of a file; when all are read, `file_digest` knows the file's digest."""
    version = file_version(path)
    with path.open("rb", buffering=0) as file:
        yield from read_file(path, file.fileno(), options)
        file.seek(0)
        remember_digest(path, version, hashlib.file_digest(file, "sha256").hexdigest())


class CachedRecords:
    """The records and bad rows of a file, in order, cached on disk; any number of iterations, also concurrent ones.

    Args:
        path: The file.
        data: How it is read.
        stored: The file to store the records in.
    """

    def __init__(self, path: Path, data: DataConfig, stored: Path) -> None:
        self._records = SourceRecords(path, data, hashed=True)
        self._unread: Iterator[Record | BadRow] | None = iter(self._records)
        self._end: str | None = None  # why the rest of the file can't be read
        self._stored = stored
        self._out = stored.open("wb")
        self._size = 0  # bytes stored so far
        self.failed = False

    @property
    def format(self) -> str | None:
        """See `SourceRecords`."""
        return self._records.format

    def __iter__(self) -> Iterator[Record | BadRow]:
        place = 0
        with self._stored.open("rb") as stored:
            while True:
                if place < self._size:
                    if self._unread is not None:
                        with self._room():
                            self._out.flush()
                    stored.seek(place)
                    place = self._size
                    while stored.tell() < place:
                        yield pickle.load(stored)
                elif self._unread is not None:
                    row = self._next(self._unread)
                    place = self._size
                    if row is not None:
                        yield row
                elif self._end is not None:
                    raise BadRow(self._end)
                else:
                    return

    def _next(self, unread: Iterator[Record | BadRow]) -> Record | BadRow | None:
        """Parses one more row and stores it; None at the end."""
        try:
            row = next(unread, None)
        except BadRow as error:
            self._end, row = str(error), None
        except BaseException:  # also Ctrl-C: the file is parsed only in part, and starts anew next time
            self.failed = True
            raise
        if row is None:
            self._unread = None
            with self._room():
                self._out.close()
            return None
        try:
            packed = pickle.dumps(row, protocol=pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            where = row.where if isinstance(row, Record) else str(row)
            row = BadRow(f"{where}: this row can't be stored on disk ({error}); give plain values.")
            packed = pickle.dumps(row)
        with self._room():
            self._out.write(packed)
        self._size += len(packed)
        return row

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = True
            raise no_room("parsed rows", error) from error

    def close(self) -> None:
        """Deletes the stored records."""
        self._out.close()
        self._stored.unlink(missing_ok=True)


class _RecordCache:
    """The files cached by this process, by path and configuration."""

    def __init__(self) -> None:
        self._files: dict[tuple[Path, str], tuple[object, CachedRecords]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def file(self, path: Path, data: DataConfig) -> CachedRecords | SourceRecords:
        """The records of a file, parsed again only if the file or the user's reader has changed."""
        reader = resolve(data.format.rpartition(":")[0]) if ":" in data.format else path
        key, version = (path.absolute(), repr(data)), (file_version(path), file_version(reader), str(path))
        if version[0] is None:  # no such file: our formats report it, and a user's reader may know what the name means
            return SourceRecords(path, data)
        known, found = self._files.get(key, (None, None))
        if found is None or known != version or found.failed:
            if found is not None:
                found.close()
            found = CachedRecords(path, data, self._new_path())
            self._files[key] = version, found
        return found

    def _new_path(self) -> Path:
        try:
            self._folder = self._folder or scratch_folder()
        except OSError as error:
            raise no_room("parsed rows", error) from error
        self._count += 1
        return Path(self._folder.name, f"{self._count}.rows")

    def clear(self) -> None:
        """Forgets every file."""
        for _, file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()


_CACHE = _RecordCache()
forget_cached_records = _CACHE.clear


def records_of(source: Source, data: DataConfig, streamed: bool = False) -> SourceRecords | CachedRecords:
    """The records of a source. A file is parsed once; a streamed file and a Hub split are parsed on every pass.

    Raises:
        UserError: The disk has no room for the records.
    """
    if isinstance(source, Path) and not streamed:
        return _CACHE.file(source, data)
    return SourceRecords(source, data)
