"""What the readers of every file type share: a row and its place, how files are read, lines of text."""

from __future__ import annotations

import codecs
import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, AnyStr

from gemma_tune.config import DataConfig
from gemma_tune.data.records import BadRow

Row = tuple[str, dict[str, Any]]  # file and line, and the fields
_UTF_8 = ("utf-8", "utf-8-sig")
# Bytes of a line (a conversation of sixteen million tokens has about as many), and empty lines one after the other
LONGEST_LINE, _EMPTY_LINES = 64 << 20, 1_000_000
_BOM_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class FileOptions:
    """How files are read; the default is what readers of single rows (prompts, a leaderboard's files) need.

    Attributes:
        encoding: Python's name of the encoding of JSON, JSONL, CSV, TSV and text.
        layouts: Whether a file that is one JSON object may be a table's columns, or hold the rows under a field.
        field: That field; `a.b` is a field within a field. None: found where there is only one.
        sample_by: What one row of a .txt file is: `line`, `paragraph` or `document`; None: a paragraph, where the file
            has blank lines.
        text_column: The field that holds the text of a .txt file.
        row_fields: The fields of a row that the configuration names.
        configured: Whether `data.encoding` can be set for these files.
        beside: Is filled while a file is read: the fields beside its rows, by their names.
    """

    encoding: str = "utf-8"
    layouts: bool = False
    field: str | None = None
    sample_by: str | None = None
    text_column: str = "text"
    row_fields: frozenset[str] = frozenset()
    configured: bool = False
    beside: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, data: DataConfig) -> FileOptions:
        """The options of a configuration."""
        columns = (value for name, value in vars(data).items() if name.endswith("_column") and value)
        fields = frozenset(part for column in columns for part in (column, column.partition(".")[0]))
        return cls(data.encoding, True, data.field, data.sample_by, data.text_column, fields, True)


def is_utf_8(encoding: str) -> bool:
    """Whether an encoding is UTF-8 by one of its names."""
    return codecs.lookup(encoding).name in _UTF_8


def not_decoded(where: str, options: FileOptions, raw: bytes = b"", place: str = "") -> BadRow:
    """What to say of bytes that are not in the encoding of the file.

    Args:
        where: File and line.
        options: How the file is read.
        raw: The first bytes.
        place: Where in the line, in words.
    """
    encoding, key = options.encoding, options.configured
    if is_utf_8(encoding) and raw.startswith(_BOM_16):
        return BadRow(f"{where}: this file is UTF-16; save it as UTF-8{', or set data.encoding=utf-16' * key}.")
    if is_utf_8(encoding):
        way = ", or name its encoding: data.encoding=cp1252 (Western Windows), utf-16, …" if key else "."
        return BadRow(f"{where}: the bytes are not UTF-8{place}; save the file as UTF-8{way}")
    return BadRow(f"{where}: the bytes are not {encoding}{place}; check data.encoding={encoding}.")


def decoding(encoding: str) -> str:
    """The codec to read with: files from Windows begin with a byte order mark."""
    return "utf-8-sig" if is_utf_8(encoding) else encoding


def is_text(text: str) -> bool:
    """Whether it was decoded without errors, which `surrogateescape` leaves as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def bounded_lines(path: Path, file: IO[AnyStr], longest: int | None) -> Iterator[AnyStr]:
    """The lines of a file, line breaks included.

    Raises:
        BadRow: A line has more than `longest` bytes (characters of a text), or a million lines in a row are empty.
    """
    number = empty = 0
    most = -1 if longest is None else longest + 1
    while line := file.readline(most):
        number += 1
        if longest is not None and len(line) > longest:
            raise BadRow(f"{path}:{number}: this line has more than {longest >> 20} MiB, which no row has.")
        empty = empty + 1 if len(line) <= 2 and not line.strip() else 0
        if empty > _EMPTY_LINES:
            raise BadRow(f"{path}:{number}: {_EMPTY_LINES:,} lines in a row are empty; take them out.")
        yield line


def text_lines(
    path: Path, file: IO[bytes], options: FileOptions, longest: int | None = LONGEST_LINE
) -> Iterator[tuple[int, str | BadRow]]:
    """Yields each line with its number, the line break included, and a BadRow for one that can't be decoded.

    Args:
        path: The file.
        file: Its content.
        options: How it is read.
        longest: As for `bounded_lines`; None where the whole file may be one line.

    Raises:
        BadRow: The rest of the file can't be decoded; or as `bounded_lines`.
    """
    number, encoding = 0, options.encoding
    if is_utf_8(encoding):
        for number, raw in enumerate(bounded_lines(path, file, longest), start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, not_decoded(f"{path}:{number}", options, raw, f" (byte {error.start} of the line)")
        return
    lines = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="\n")
    try:
        for text in bounded_lines(path, lines, longest):
            number += 1
            yield number, text if is_text(text) else not_decoded(f"{path}:{number}", options)
    except UnicodeError as error:
        raise not_decoded(f"{path}:{number + 1}", options, place=f" from here on ({error})") from error
