"""Reads .txt files: running text, one row for each line, each paragraph or the whole document."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import IO

from gemma_tune.data.file_rows import FileOptions, Row, text_lines
from gemma_tune.data.records import BadRow

Lines = list[tuple[int, str | BadRow]]


def _blank(line: tuple[int, str | BadRow]) -> bool:
    return isinstance(line[1], str) and not line[1].strip()


def _samples(lines: Iterator[tuple[int, str | BadRow]], sample_by: str | None) -> Iterator[Lines]:
    if sample_by == "line":
        return ([line] for line in lines if not _blank(line))
    if sample_by == "document":
        whole = list(lines)
        return iter([whole] if any(not _blank(line) for line in whole) else [])
    return (list(group) for blank, group in groupby(lines, key=_blank) if not blank)


def read_text(path: Path, file: IO[bytes], options: FileOptions) -> Iterator[Row | BadRow]:
    """Yields `{text_column: text}` for each sample, without the line breaks around it; blank lines are no samples.

    Raises:
        BadRow: `sample_by` is None and the file has several lines and no blank one: it may be one document, or one a
            line.
    """
    samples = _samples(text_lines(path, file, options), options.sample_by)
    begin = [sample for _, sample in zip(range(2), samples, strict=False)]
    if options.sample_by is None and len(begin) == 1 and len(begin[0]) > 1:
        raise BadRow(
            f"{path}: {len(begin[0])} lines, and no blank one that would end a text; say what a row is: "
            "data.sample_by=line, paragraph (up to the next blank line) or document (the whole file)."
        )
    for sample in chain(begin, samples):
        if bad := next((line for _, line in sample if isinstance(line, BadRow)), None):
            yield bad
            continue
        number = next(number for number, line in sample if not _blank((number, line)))
        lines = [str(line).removesuffix("\n").removesuffix("\r") for _, line in sample]
        yield f"{path}:{number}", {options.text_column: "\n".join(lines).strip("\n")}
