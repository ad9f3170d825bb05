"""Rendered rows in a memory-mapped Arrow file, so that memory doesn't grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from gemma_tune.chat import Rendered
from gemma_tune.data.scratch import scratch_folder

_TOKENS = {"input_ids": List(Value("int32")), "labels": List(Value("int32"))}
MEDIUM = {"kind": Value("string"), "path": Value("string"), "at": Value("int32"), "tokens": Value("int32")}
FEATURES = Features(_TOKENS)
# Of rows with images, sounds or videos; other data sets have no such column
WITH_MEDIA = Features({**_TOKENS, "media": List(MEDIUM)})


def _mapped(folder: Any, dataset: Dataset) -> ArrowRows:
    rows = ArrowRows.__new__(ArrowRows)
    rows._folder, rows.dataset = folder, dataset
    return rows


class ArrowRows(Sequence[Rendered]):
    """Rendered rows in a memory-mapped Arrow file.

    Attributes:
        dataset: The same rows as a data set with the columns `input_ids` and `labels`, and `media` where there are any.
    """

    def __init__(self, rows: Iterable[Rendered]) -> None:
        self._folder = scratch_folder()  # goes with this object
        file = str(Path(self._folder.name) / "rows.arrow")
        media = False
        with ArrowWriter(path=file, features=WITH_MEDIA, writer_batch_size=1000) as writer:
            for row in rows:
                media = media or bool(row.media)
                writer.write(vars(row))
            writer.finalize()
        stored = Dataset.from_file(file)
        self.dataset = stored if media else stored.remove_columns("media")

    @classmethod
    def of_tables(cls, tables: Iterable[pa.Table]) -> ArrowRows:
        """Rows without media, as tables with the columns `input_ids` and `labels`."""
        folder = scratch_folder()
        file = str(Path(folder.name) / "rows.arrow")
        with ArrowWriter(path=file, features=FEATURES) as writer:
            for table in tables:
                writer.write_table(table)
            writer.finalize()
        return _mapped(folder, Dataset.from_file(file))

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process of the run: the same file, mapped there, too."""
        return _mapped, (self._folder, self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [Rendered(**row) for row in self.dataset.select(range(*index.indices(len(self))))]
        return Rendered(**self.dataset[index])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented
