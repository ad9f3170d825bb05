"""Reads data sets of the Hugging Face Hub with `datasets`."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_tune.data.file_rows import Row
from gemma_tune.data.folders import is_saved_dataset, refuse_snapshots, row_files, setting
from gemma_tune.data.tools import without_nulls_inside
from gemma_tune.errors import UserError
from gemma_tune.models.hub import no_network, not_here
from gemma_tune.run.paths import looks_local, resolve

_MEDIA = ("Image", "Audio", "Video")  # features of `datasets`
_BATCH = 64  # rows that are read at once


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set on the Hub, or of a folder that `datasets.load_dataset` knows.

    Attributes:
        name: `owner/name`.
        config: Its configuration (subset), or None for the only one.
        split: `train`, `test[:10%]`, …
        revision: Branch, tag or commit.
        streaming: Read as it is downloaded.
    """

    name: str
    config: str | None
    split: str
    revision: str | None
    streaming: bool

    def __str__(self) -> str:
        return ":".join(part for part in (self.name, self.config, self.split) if part)

    @property
    def folder(self) -> Path | None:
        """Where relative paths of media are looked up: the folder, where the data set is one on this machine."""
        return resolve(self.name) if resolve(self.name).is_dir() else None

    def rows(self) -> Iterator[Row]:
        """Yields the rows in order, each as `(name:config:split:row N, fields)`.

        Raises:
            UserError: There is no such data set, configuration, split or revision, or it can't be reached or read.
        """
        self._refuse_folders()
        import pyarrow as pa
        from datasets.exceptions import DatasetsError

        try:
            for number, row in enumerate(_undecoded(_loaded(self)), start=1):
                yield f"{self}:row {number}", without_nulls_inside(row)
        except (DatasetsError, OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            if not resolve(self.name).is_dir() and (why := no_network()):
                command = f"hf download --repo-type dataset {self.name}"
                raise not_here(f"data.dataset_name={self}", why, command, "data.train_file=my.jsonl") from error
            causes = [str(e).strip().splitlines()[0] for e in (error, error.__cause__) if e and str(e).strip()]
            if resolve(self.name).is_dir():
                raise UserError(
                    f"data.dataset_name={self}: it can't be loaded ({': '.join(causes)}); check "
                    "data.dataset_config_name and data.split, or name its files: data.train_file."
                ) from error
            raise UserError(
                f"data.dataset_name={self}: it can't be loaded ({': '.join(causes) or type(error).__name__}); check "
                "the name, data.dataset_config_name, data.split and data.revision; accept its terms at "
                f"https://huggingface.co/datasets/{self.name} and log in (`hf auth login`), or give a local file: "
                "data.train_file."
            ) from error

    def _refuse_folders(self) -> None:
        """A folder of `save_to_disk`, which `load_dataset` doesn't read, and one that isn't there."""
        folder = resolve(self.name)
        if folder.is_dir():
            refuse_snapshots(row_files(folder, f"data.dataset_name={self.name}"), self.name, "data.dataset_name")
        if is_saved_dataset(folder):
            split = self.split.partition("[")[0]
            place = os.path.join(self.name, split) if (folder / split).is_dir() else self.name
            raise UserError(
                f"data.dataset_name={self.name}: this folder was written by save_to_disk; read it as files: "
                f"{setting('data.train_file', place)}"
            )
        if not folder.is_dir() and looks_local(self.name) and ("/" in self.name or "\\" in self.name):
            raise UserError(
                f"data.dataset_name={self.name}: there is no such folder, and it is no owner/name of the Hub."
            )


def _undecoded(rows: Any) -> Any:
    """The rows with images, sound and video as they are stored: bytes or paths; `datasets` would decode them."""
    features = rows.features
    if not features or not any(type(f).__name__ in _MEDIA for f in _leaves(features)):
        return rows
    if hasattr(rows, "decode"):  # a streamed set
        return rows.decode(False)
    return (row for batch in rows.with_format("arrow").iter(_BATCH) for row in batch.to_pylist())


def _leaves(feature: Any) -> Iterator[Any]:
    """The features of a set of features, those within lists and structs, too."""
    if isinstance(feature, dict):
        for inner in feature.values():
            yield from _leaves(inner)
    elif isinstance(feature, list):
        for inner in feature:
            yield from _leaves(inner)
    elif hasattr(feature, "feature"):
        yield from _leaves(feature.feature)
    else:
        yield feature


@functools.lru_cache(maxsize=8)  # several passes must see one revision, even if the branch moves
def _loaded(split: HubSplit) -> Any:
    import datasets

    # A folder by its whole path, since a name of two parts is looked for on the Hub, too
    name = str(resolve(split.name).absolute()) if resolve(split.name).is_dir() else split.name
    return datasets.load_dataset(
        name,
        split.config,
        split=split.split,
        revision=split.revision,
        streaming=split.streaming,
        trust_remote_code=False,
    )
