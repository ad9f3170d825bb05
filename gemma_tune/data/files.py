"""Finds the files that a name stands for, and reads their rows: JSONL, JSON, CSV, TSV and Parquet, also gzipped."""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from gemma_tune.data.records import BadRow
from gemma_tune.errors import UserError
from gemma_tune.run.paths import FILE_TYPES, file_type, resolve

Row = tuple[str, dict[str, Any]]  # file and line, and the fields
_DELIMITERS = ",;\t|"
_NOTHING = "\x1f"  # the unit separator, which no text holds
_LONGEST_FIELD = 2**31 - 1
_BUFFER = 1 << 17  # bytes that are read at once


def find_files(name: str, key: str, any_type: bool = False) -> list[Path]:
    """The files that a name stands for, sorted: a file, all files of a known type below a folder, or a glob.

    Args:
        name: As the user wrote it.
        key: Its key, for the message.
        any_type: Whether a single file may have an unknown type.

    Raises:
        UserError: There is none, or one has an unknown type.
    """
    path = resolve(name)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and file_type(p) and not _hidden(p, path))
        if not found:
            raise UserError(
                f"{key}={name}: no file of this folder is one of {', '.join(FILE_TYPES)} (or one of them .gz)."
            )
        return found
    if not path.exists() and glob.has_magic(name):
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not found:
            raise UserError(f"{key}={name}: no file has a name like this.")
    else:
        found = [path]
    for file in found:
        if not any_type and not file_type(file):
            raise UserError(
                f"{key}={name}: {file.name} is of no known type; name it {', '.join(FILE_TYPES)} (or one of them .gz)."
            )
    return found


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def read_file(path: Path, descriptor: int | None = None) -> Iterator[Row | BadRow]:
    """Yields the rows of a file in order, and a BadRow for each that can't be read. The file is opened once.

    Args:
        path: The file.
        descriptor: Of the same file where the caller has opened it; it stays open.

    Raises:
        BadRow: The rest of the file can't be read, unlike a bad row, which is yielded.
        OSError: The file can't be opened.
    """
    kind = file_type(path)
    if kind is None:
        raise BadRow(f"{path}: of no known type; name it {', '.join(FILE_TYPES)} (or one of them .gz).")
    try:
        raw = path.open("rb", buffering=0) if descriptor is None else io.FileIO(descriptor, closefd=False)
        with io.BufferedReader(raw, _BUFFER) as file:
            yield from _READERS[kind](path, _unzipped(path, file))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadRow(f"{path}: this is no whole gzip file ({error}).") from error


def _unzipped(path: Path, file: io.BufferedReader[Any]) -> IO[bytes]:
    zipped = file.peek(2).startswith(b"\x1f\x8b")
    if path.suffix.lower() == ".gz" and not zipped and path.stat().st_size:
        raise gzip.BadGzipFile("it doesn't begin as one")
    return cast(IO[bytes], gzip.GzipFile(fileobj=file)) if zipped else file


def _checked(row: Any, where: str) -> Row | BadRow:
    if isinstance(row, dict):
        return where, row
    return BadRow(f"{where}: this line is {type(row).__name__}, not a JSON object.")


def _jsonl(path: Path, file: IO[bytes]) -> Iterator[Row | BadRow]:
    for number, raw in enumerate(file, start=1):
        where = f"{path}:{number}"
        try:
            # utf-8-sig: files from Windows begin with a byte order mark
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if line:
                yield _checked(json.loads(line), where)
        except UnicodeDecodeError as error:
            yield _not_utf8(raw, error.start, where)
        except (ValueError, RecursionError) as error:
            hint = " Name a file that is one JSON array .json." if line.startswith("[") and number == 1 else ""
            yield BadRow(f"{where}: this line is not JSON ({error}).{hint}")


def _not_utf8(raw: bytes, at: int, where: str) -> BadRow:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return BadRow(f"{where}: this file is UTF-16; save it as UTF-8.")
    return BadRow(f"{where}: the bytes are not UTF-8 (byte {at} of the line); save the file as UTF-8.")


def _json(path: Path, file: IO[bytes]) -> Iterator[Row | BadRow]:
    """One array of objects, or one object per line, since many such files are named .json."""
    start = file.read(4096).lstrip(codecs.BOM_UTF8).lstrip()
    file.seek(0)
    if not start.startswith(b"["):
        yield from _jsonl(path, file)
        return
    raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadRow(f"{path}:{line}: the bytes are not UTF-8; save the file as UTF-8.") from error
    del raw
    decoder, at, line = json.JSONDecoder(), text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    number, last = 0, 0  # of the row, and the line that the last one began on
    expected = False  # after a comma a value must come

    def skip(at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    seen = text.index("[")
    while True:
        at = skip(at)
        line, seen = line + text.count("\n", seen, at), at
        where = f"{path}:{line}"
        if text[at : at + 1] == "]" and not expected:
            if (rest := skip(at + 1)) < len(text):
                line += text.count("\n", at, rest)
                raise BadRow(
                    f"{path}:{line}: something follows the array; a .json file holds one (or an object a line)."
                )
            return
        try:
            row, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"{where}: from here on the array is not JSON ({error}).") from error
        number += 1
        yield _checked(row, f"{where}, row {number}" if line == last else where)
        last, at = line, skip(end)
        expected = text[at : at + 1] == ","
        if not expected and text[at : at + 1] != "]":
            raise BadRow(f"{path}:{line + text.count(chr(10), seen, at)}: a comma or the array's end is missing here.")
        at += expected


def _csv(path: Path, file: IO[bytes]) -> Iterator[Row | BadRow]:
    csv.field_size_limit(_LONGEST_FIELD)
    start = file.read(2)
    file.seek(0)
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise _not_utf8(start, 0, f"{path}:1")
    # newline="" keeps line ends; bytes that aren't UTF-8 become lone surrogates, which are reported with their row
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    head = next((line for line in text if line.strip()), "")
    text.seek(0)
    delimiter = "\t" if ".tsv" in [s.lower() for s in path.suffixes[-2:]] else _delimiter(head)
    names: list[str] = []
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        where = f"{path}:{rows.line_num + 1}"  # the row's first line
        try:
            values = next(rows, None)
        except csv.Error as error:
            raise BadRow(f"{where}: from here on this is not CSV ({error}).") from error
        if values is None:
            return
        if not any(values) and len(values) < 2:  # an empty line
            continue
        if names:
            yield _csv_row(names, values, where)
        else:
            names = _csv_names(values, where)


def _delimiter(head: str) -> str:
    """The delimiter that occurs most often in the first line, outside quotes; a single column needs none."""
    plain = re.sub(r'"[^"]*("|$)', "", head)
    best = max(_DELIMITERS, key=plain.count)
    return best if best in plain else _NOTHING


def _csv_names(names: list[str], where: str) -> list[str]:
    if not _is_text("".join(names)):
        raise BadRow(f"{where}: the bytes are not UTF-8; save the file as UTF-8.")
    if twice := sorted(name for name, n in Counter(names).items() if n > 1):
        raise BadRow(f"{where}: the first line names {', '.join(twice)} twice; give each column a name of its own.")
    return names


def _csv_row(names: list[str], values: list[str], where: str) -> Row | BadRow:
    if len(values) != len(names):
        return BadRow(
            f"{where}: {len(values)} fields, and the first line names {len(names)} ({', '.join(names)}); put fields "
            "with commas or line breaks in quotes."
        )
    if not _is_text("".join(values)):
        return BadRow(f"{where}: the bytes are not UTF-8; save the file as UTF-8.")
    return where, dict(zip(names, values, strict=True))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet(path: Path, raw: IO[bytes]) -> Iterator[Row | BadRow]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(raw) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", without_nulls(row)
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise BadRow(
            f"{path}:row {number + 1}: from here on this is not Parquet ({str(error).splitlines()[0]})."
        ) from error


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """The row without null fields in its structs: columnar files give each struct the fields of all rows."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if v is not None}
        return [plain(v) for v in value] if isinstance(value, list) else value

    return {k: plain(v) for k, v in row.items()}


_READERS: dict[str, Callable[[Path, IO[bytes]], Iterator[Row | BadRow]]] = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet,
}  # fmt: skip
