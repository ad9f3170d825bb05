"""JSONL files: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_tune.data.records import BadRow


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (`file:line`, row) for every line that isn't blank.

    Raises:
        BadRow: A line that isn't UTF-8 or not a JSON object, or holds half of a character (a lone surrogate).
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                # utf-8-sig: files from Windows begin with a byte order mark
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                row = json.loads(line) if line else None
                if "\\ud" in line.lower():
                    json.dumps(row, ensure_ascii=False).encode()
            except UnicodeDecodeError as error:
                at = f"byte {error.start} of the line"
                raise BadRow(f"{where}: the bytes are not UTF-8 ({at}); save the file as UTF-8.") from error
            except UnicodeEncodeError as error:
                half = f"\\u{ord(error.object[error.start]):x}"
                raise BadRow(f"{where}: {half} stands without the other half of its character.") from error
            except ValueError as error:
                hint = " One JSON array is no JSONL: write one object a line." if line.startswith("[") else ""
                raise BadRow(f"{where}: this line is not JSON ({error}).{hint}") from error
            if not line:
                continue
            if not isinstance(row, dict):
                raise BadRow(f"{where}: this line is {type(row).__name__}, not a JSON object.")
            yield where, row


def field(row: dict[str, Any], name: str, where: str, key: str) -> Any:
    """A field that must be there.

    Raises:
        BadRow: It isn't; the message lists the fields that are, and the key that maps them.
    """
    if name not in row:
        raise BadRow(f"{where}: there is no field {name!r}; found: {', '.join(row) or 'none'}. Set {key}.")
    return row[name]


def text_field(row: dict[str, Any], name: str, where: str, key: str) -> str:
    """A field that must be a text with something in it."""
    value = field(row, name, where, key)
    if not isinstance(value, str):
        raise BadRow(f"{where}: the field {name!r} is {type(value).__name__}, not a text ({key}).")
    if not value.strip():
        raise BadRow(f"{where}: the field {name!r} is empty ({key}).")
    return value
