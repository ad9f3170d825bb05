"""A GGUF file that is there only when it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gguf import GGUFWriter


@contextmanager
def gguf_writer(file: Path, architecture: str) -> Iterator[GGUFWriter]:
    """The package's writer: writes into `file.part`, and renames it to `file` on success; deletes it on any error.

    Args:
        file: The file; its folder is made where it is needed.
        architecture: `general.architecture`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    writer = GGUFWriter(part, architecture)
    try:
        yield writer
        writer.close()
        os.replace(part, file)
    except BaseException:  # Ctrl-C, too
        writer.close()
        part.unlink(missing_ok=True)
        raise


def write_head(writer: GGUFWriter) -> None:
    """Writes all that stands before the numbers; the caller writes these in the order in which it has named them."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
