"""Rendered rows on disk: their number doesn't show in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, config
from datasets.arrow_writer import ArrowWriter

from gemma_tune.chat import Rendered

FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


class ArrowRows(Sequence[Rendered]):
    """Rendered rows in an Arrow file, of which the operating system keeps in memory what is in use.

    Attributes:
        dataset: The same as a data set with `input_ids` and `labels`.
    """

    def __init__(self, rows: Iterable[Rendered]) -> None:
        # Beside the cache of data sets: the folder for temporary files may be memory itself
        cache = Path(config.HF_DATASETS_CACHE)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix="gemma_tune-", dir=cache)  # goes with this object
        except OSError:
            self._folder = tempfile.TemporaryDirectory(prefix="gemma_tune-")
        file = str(Path(self._folder.name) / "rows.arrow")
        with ArrowWriter(path=file, features=FEATURES, writer_batch_size=1000) as writer:
            for row in rows:
                writer.write(vars(row))
            writer.finalize()
        self.dataset = Dataset.from_file(file)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [Rendered(**row) for row in self.dataset.select(range(*index.indices(len(self))))]
        return Rendered(**self.dataset[index])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented
