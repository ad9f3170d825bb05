"""Which files a name means, and their rows whatever the file's type: JSONL, JSON, CSV, TSV and Parquet, gzipped too."""

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

Row = tuple[str, dict[str, Any]]  # where it stands, and its fields
_DELIMITERS = ",;\t|"
_NOTHING = "\x1f"  # the unit separator, which no text holds
_LONGEST_FIELD = 2**31 - 1


def find_files(name: str, key: str, any_type: bool = False) -> list[Path]:
    """The files of a name: a file, every file of a known type in a folder and below it, or a glob; by name.

    Args:
        name: As the user wrote it.
        key: Its key, for the message.
        any_type: Whether a single file may be of a type that isn't known.

    Raises:
        UserError: There is none, or one is of a type that isn't known.
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


def read_file(path: Path) -> Iterator[Row | BadRow]:
    """Every row of a file, or what is wrong with it, in the file's order.

    Raises:
        BadRow: The rest of the file can't be read, whatever a single row may hold.
        OSError: The file can't be opened.
    """
    kind = file_type(path)
    if kind is None:
        raise BadRow(f"{path}: of no known type; name it {', '.join(FILE_TYPES)} (or one of them .gz).")
    try:
        yield from _READERS[kind](path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadRow(f"{path}: this is no whole gzip file ({error}).") from error


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if path.suffix.lower() == ".gz" and not zipped and path.stat().st_size:
        raise gzip.BadGzipFile("it doesn't begin as one")
    return cast(IO[bytes], gzip.open(path)) if zipped else path.open("rb")


def _checked(row: Any, where: str) -> Row | BadRow:
    if isinstance(row, dict):
        return where, row
    return BadRow(f"{where}: this line is {type(row).__name__}, not a JSON object.")


def _jsonl(path: Path) -> Iterator[Row | BadRow]:
    with _open(path) as file:
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


def _json(path: Path) -> Iterator[Row | BadRow]:
    """One array of objects; or, as many files are named so, one object a line."""
    with _open(path) as file:
        start = file.read(4096).lstrip(codecs.BOM_UTF8).lstrip()
    if not start.startswith(b"["):
        yield from _jsonl(path)
        return
    with _open(path) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadRow(f"{path}:{line}: the bytes are not UTF-8; save the file as UTF-8.") from error
    decoder, at, line = json.JSONDecoder(), text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
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
        yield _checked(row, where)
        at = skip(end)
        expected = text[at : at + 1] == ","
        if not expected and text[at : at + 1] != "]":
            raise BadRow(f"{path}:{line + text.count(chr(10), seen, at)}: a comma or the array's end is missing here.")
        at += expected


def _csv(path: Path) -> Iterator[Row | BadRow]:
    csv.field_size_limit(_LONGEST_FIELD)
    with _open(path) as raw:
        start = raw.read(2)
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise _not_utf8(start, 0, f"{path}:1")
    with _as_text(path) as file:
        head = next((line for line in file if line.strip()), "")
    delimiter = "\t" if ".tsv" in [s.lower() for s in path.suffixes[-2:]] else _delimiter(head)
    names: list[str] = []
    with _as_text(path) as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
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


def _as_text(path: Path) -> IO[str]:
    """The file with its line ends; bytes that are no UTF-8 are kept as lone surrogates, and found in their row."""
    return io.TextIOWrapper(_open(path), "utf-8-sig", errors="surrogateescape", newline="")


def _delimiter(head: str) -> str:
    """The separator that the first line has most of, outside of quotes; in a single column nothing separates."""
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


def _parquet(path: Path) -> Iterator[Row | BadRow]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with _open(path) as raw, parquet.ParquetFile(raw) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", without_nulls(row)
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise BadRow(
            f"{path}:row {number + 1}: from here on this is not Parquet ({str(error).splitlines()[0]})."
        ) from error


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose structs lack the fields that are null: in columnar files they have every field of all rows."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if v is not None}
        return [plain(v) for v in value] if isinstance(value, list) else value

    return {k: plain(v) for k, v in row.items()}


_READERS: dict[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet,
}  # fmt: skip
