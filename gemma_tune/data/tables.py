"""Reads tables: CSV and TSV as spreadsheets and pandas write them, Parquet, and Arrow's streams and files."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from gemma_tune.data.file_rows import FileOptions, Row, bounded_lines, decoding, is_text, is_utf_8, not_decoded
from gemma_tune.data.records import BadRow
from gemma_tune.data.tools import without_nulls_inside

_DELIMITERS = ",;\t|"
_NOTHING = "\x1f"  # the unit separator, which no text holds
_LONGEST_LINE = 16 << 20  # characters, also of a field that goes over several lines
_BATCH = 64  # rows of a columnar file that are read at once: the same long text in each takes little place in the file
# Of a Parquet file: bytes of its footer; bytes that a group of rows may always hold, and times the file's size
_FOOTER, _GROUP, _TIMES = 64 << 20, 64 << 20, 200
_ARROW_FILE = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_csv(path: Path, file: io.BufferedReader[Any], options: FileOptions) -> Iterator[Row | BadRow]:
    """Yields each row by the names in the first line, with the line that it begins on.

    Raises:
        BadRow: The rest of the file can't be read.
    """
    csv.field_size_limit(_LONGEST_LINE)
    start = file.peek(2)[:2]
    if is_utf_8(options.encoding) and start in (b"\xff\xfe", b"\xfe\xff"):
        raise not_decoded(f"{path}:1", options, start)
    # newline="" keeps line ends; bytes that can't be decoded become lone surrogates, which are reported with their row
    decoded = io.TextIOWrapper(file, decoding(options.encoding), errors="surrogateescape", newline="")
    text = bounded_lines(path, decoded, _LONGEST_LINE)
    number = 0
    try:
        begin: list[str] = []
        for line in text:
            begin.append(line)
            if line.strip():
                break
        tabs = ".tsv" in [s.lower() for s in path.suffixes[-2:]]
        delimiter = "\t" if tabs else _delimiter("".join(begin[-1:]))
        names: list[str] = []
        rows = csv.reader(chain(begin, text), delimiter=delimiter, strict=True)
        while True:
            number = rows.line_num
            where = f"{path}:{number + 1}"  # the row's first line
            values = next(rows, None)
            if values is None:
                return
            if not any(values) and len(values) < 2:  # an empty line
                continue
            if not is_text("".join(values)):
                bad = not_decoded(where, options)
                if not names:
                    raise bad
                yield bad
            elif names:
                yield _csv_row(names, values, where)
            else:
                names = _csv_names(values, where)
    except csv.Error as error:
        raise BadRow(f"{path}:{number + 1}: from here on this is not CSV ({error}).") from error
    except UnicodeError as error:
        raise not_decoded(f"{path}:{number + 1}", options, place=f" from here on ({error})") from error


def _delimiter(head: str) -> str:
    """The delimiter that occurs most often in the first line, outside quotes; a single column needs none."""
    plain = re.sub(r'"[^"]*("|$)', "", head)
    best = max(_DELIMITERS, key=plain.count)
    return best if best in plain else _NOTHING


def _csv_names(names: list[str], where: str) -> list[str]:
    if twice := sorted(name for name, n in Counter(names).items() if n > 1):
        raise BadRow(f"{where}: the first line names {', '.join(twice)} twice; give each column a name of its own.")
    return names


def _csv_row(names: list[str], values: list[str], where: str) -> Row | BadRow:
    if len(values) != len(names):
        return BadRow(
            f"{where}: {len(values)} fields, and the first line names {len(names)} ({', '.join(names)}); put fields "
            "with commas or line breaks in quotes."
        )
    return where, dict(zip(names, values, strict=True))


def _seekable(file: IO[bytes]) -> IO[bytes]:
    """A columnar file is read from its end: one that is compressed as a whole is held in memory."""
    return file if file.seekable() else io.BytesIO(file.read())


def read_parquet(path: Path, file: IO[bytes], options: FileOptions) -> Iterator[Row | BadRow]:
    """Yields each row, without the null fields that Arrow gives to its structs."""
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        content = _seekable(file)
        size = _check_footer(path, content)
        with parquet.ParquetFile(content) as opened:
            for number in range(opened.metadata.num_row_groups):
                if opened.metadata.row_group(number).total_byte_size > max(_GROUP, _TIMES * size):
                    raise BadRow(f"{path}: a group of rows in it would hold more than {_TIMES} times the file's size.")
            yield from opened.iter_batches(batch_size=_BATCH)

    return _columnar(path, batches(), "Parquet")


def _check_footer(path: Path, file: IO[bytes]) -> int:
    """The size of a file whose footer lies within it and has a size that footers have.

    Raises:
        BadRow: It has another one, which would be read into memory.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    footer = int.from_bytes(file.read(4), "little")
    file.seek(0)
    if footer > min(size, _FOOTER):
        raise BadRow(
            f"{path}:row 1: from here on this is not Parquet (its footer would have {footer:,} bytes of {size:,})."
        )
    return size


def read_arrow(path: Path, file: IO[bytes], options: FileOptions) -> Iterator[Row | BadRow]:
    """Yields each row of an Arrow stream, as `datasets` writes it, or of an Arrow file (Feather 2)."""
    return _columnar(path, _arrow_batches(path, _seekable(file)), "Arrow")


def _arrow_batches(path: Path, file: IO[bytes]) -> Iterator[Any]:
    import pyarrow as pa

    is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
    file.seek(0)
    if is_file:
        opened = pa.ipc.open_file(file)
        yield from (opened.get_batch(n) for n in range(opened.num_record_batches))
        return
    yield from pa.ipc.open_stream(file)
    end = file.tell()
    file.seek(max(0, end - len(_END_OF_STREAM)))
    # Arrow takes the end of a file as the end of its stream, and reads no second stream
    if file.read(len(_END_OF_STREAM)) != _END_OF_STREAM:
        raise BadRow(f"{path}: the stream has no end: the file was cut off while it was written or copied.")
    if file.read(1):
        raise BadRow(f"{path}: something follows the Arrow stream; give each stream a file of its own.")


def _columnar(path: Path, batches: Iterator[Any], kind: str) -> Iterator[Row | BadRow]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            batch.validate(full=True)  # offsets that lead out of a batch would end this process
            for start in range(0, batch.num_rows, _BATCH):
                for row in batch.slice(start, _BATCH).to_pylist():
                    number += 1
                    yield f"{path}:row {number}", without_nulls_inside(row)
    except (pa.ArrowException, UnicodeDecodeError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own, of a file cut off, have none
            raise
        raise BadRow(
            f"{path}:row {number + 1}: from here on this is not {kind} ({str(error).splitlines()[0]})."
        ) from error
