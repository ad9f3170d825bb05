"""Finds the files that a name stands for, and reads their rows, whatever their type."""

from __future__ import annotations

import glob
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gemma_tune.data.compressed import decompressed
from gemma_tune.data.file_rows import FileOptions, Row
from gemma_tune.data.folders import folder_files, refuse_snapshots
from gemma_tune.data.json_layouts import read_json, read_jsonl
from gemma_tune.data.plain_text import read_text
from gemma_tune.data.records import BadRow
from gemma_tune.data.tables import read_arrow, read_csv, read_parquet
from gemma_tune.errors import UserError
from gemma_tune.run.paths import ALL_TYPES, file_type, resolve

_BUFFER = 1 << 17  # bytes that are read at once
_Reader = Callable[[Path, "io.BufferedReader[Any]", FileOptions], Iterator[Row | BadRow]]
_READERS: dict[str, _Reader] = {
    ".jsonl": read_jsonl, ".ndjson": read_jsonl, ".json": read_json, ".csv": read_csv, ".tsv": read_csv,
    ".parquet": read_parquet, ".arrow": read_arrow, ".txt": read_text,
}  # fmt: skip
# How files of other types become rows
_CONVERT = {
    (".xlsx", ".xls", ".ods"): 'pandas.read_excel("{0}").to_parquet("rows.parquet")',
    (".pkl", ".pickle"): 'pandas.read_pickle("{0}").to_parquet("rows.parquet")',
    (".feather",): 'pandas.read_feather("{0}").to_parquet("rows.parquet")',
    (".orc",): 'pandas.read_orc("{0}").to_parquet("rows.parquet")',
    (".xml",): 'pandas.read_xml("{0}").to_parquet("rows.parquet")',
    (".db", ".sqlite", ".sqlite3"):
        'pandas.read_sql("select * from TABLE", sqlite3.connect("{0}")).to_parquet("rows.parquet")',
    (".yaml", ".yml"): 'json.dump(yaml.safe_load(open("{0}")), open("rows.json", "w"))',
    (".pdf", ".docx", ".doc", ".html", ".htm", ".epub"): "extract the text into a .txt file, or one document a line "
        'of JSONL ({{"text": "…"}})',
    (".md", ".rst", ".tex"): "running text is named .txt",
    (".zip", ".tar", ".tgz", ".7z", ".rar"): "unpack it, and name the folder",
}  # fmt: skip


def find_files(name: str, key: str, any_type: bool = False) -> list[Path]:
    """The files that a name stands for, sorted: a file, all files with rows below a folder, or a glob.

    Args:
        name: As the user wrote it.
        key: Its key, for the message.
        any_type: Whether a single file may have an unknown type.

    Raises:
        UserError: There is none, or one has an unknown type; or a folder holds several splits.
    """
    path = resolve(name)
    if path.is_dir():
        return folder_files(path, name, key)
    if not path.exists() and glob.has_magic(name):
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not found:
            raise UserError(f"{key}={name}: no file has a name like this.")
        refuse_snapshots(found, name, key)
    else:
        found = [path]
    for file in found:
        if not any_type and not file_type(file):
            raise UserError(f"{key}={name}: {file.name} is {_unknown(file)}")
    return found


def _unknown(file: Path) -> str:
    """What a file of an unknown type is, as the end of a sentence, with the way to rows."""
    way = next((way for kinds, way in _CONVERT.items() if file.suffix.lower() in kinds), None)
    if way:
        return f"of no known type; {way.format(file.name)}. Rows stand in {ALL_TYPES}."
    return f"of no known type: rows stand in {ALL_TYPES}; a file that holds one of these needs its ending."


def read_file(path: Path, descriptor: int | None = None, options: FileOptions | None = None) -> Iterator[Row | BadRow]:
    """Yields the rows of a file in order, and a BadRow for each that can't be read. The file is opened once.

    Args:
        path: The file.
        descriptor: Of the same file where the caller has opened it; it stays open.
        options: Encoding and layout; without them, UTF-8 and one row an object.

    Raises:
        BadRow: The rest of the file can't be read, unlike a bad row, which is yielded.
        OSError: The file can't be opened.
    """
    kind = file_type(path)
    if kind is None:
        raise BadRow(f"{path}: {_unknown(path)}")
    raw = path.open("rb", buffering=0) if descriptor is None else io.FileIO(descriptor, closefd=False)
    with io.BufferedReader(raw, _BUFFER) as file, decompressed(path, file) as content:
        yield from _READERS[kind](path, content, options or FileOptions())
