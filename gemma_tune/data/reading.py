"""Reads the rows of a configuration as records: finds the files, mixes them, and handles bad rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from gemma_tune.config import DataConfig
from gemma_tune.config.path_keys import named_paths
from gemma_tune.data.files import find_files
from gemma_tune.data.folders import row_files
from gemma_tune.data.hub import HubSplit
from gemma_tune.data.mix import interleave
from gemma_tune.data.record_cache import forget_cached_records, records_of
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.remarks import RowRemarks, number
from gemma_tune.data.sources import Source
from gemma_tune.errors import UserError
from gemma_tune.neighbours import with_neighbours
from gemma_tune.run.paths import file_type, resolve

_FIRST = 200
# After the first bad row so many are read, for so many seconds, to say how many are bad
_COUNTED, _SECONDS = 100_000, 1.0


@dataclass
class SplitReader:
    """The rows of one split (training, held-out or a test set); they can be read any number of times.

    Attributes:
        data: The configuration.
        names: What is read, by configuration key: a file, a folder, a glob, or a split of `data.dataset_name`.
        limit: The largest number of rows.
        formats: The format that each file was recognised as (`data=auto`), by its name.
        skipped: What is wrong with each row that was left out (`data.on_bad_row=skip`), in the order read.
        remarks: The fields of each file that were not used, by its name.
    """

    data: DataConfig
    names: Mapping[str, str]
    limit: int | None = None
    formats: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, None] = field(default_factory=dict)
    remarks: dict[str, RowRemarks] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{key}={name}" for key, name in self.names.items())

    def __iter__(self) -> Iterator[Record]:
        """The records, from the beginning.

        Raises:
            UserError: A bad row (file and line), or a file that can't be read.
        """
        sets = [partial(self._set, key, name) for key, name in self.names.items()]
        weights = [self.data.weights.get(key.rpartition(".")[2], 1.0) for key in self.names]
        rows = sets[0]() if len(sets) == 1 else interleave(sets, weights, self.data.stopping_strategy)
        return islice(rows, self.limit)

    def _sources(self, key: str, name: str) -> Sequence[Source]:
        d = self.data
        if key in ("data.split", "data.validation_split"):
            return [HubSplit(str(d.dataset_name), d.dataset_config_name, name, d.revision, d.streaming)]
        files = find_files(name, key, any_type=":" in d.format)
        if d.format not in ("auto", "text") and ":" not in d.format:
            for file in files:
                if file_type(file) == ".txt":
                    raise UserError(
                        f"{key}={name}: {file.name} is running text (data=text), which data.format={d.format} doesn't "
                        "read; rows with fields are JSONL, JSON, CSV, TSV, Parquet or Arrow."
                    )
        return files

    def _set(self, key: str, name: str) -> Iterator[Record]:
        found, bad, first, sources = False, 0, "", self._sources(key, name)
        trains = key.startswith("data.train") or key == "data.split"
        streamed = self.data.streaming and key.startswith("data.train")
        for source in sources:
            row: Record | BadRow | None = None
            # Of this pass; those of the pass that came furthest are kept
            remarks = RowRemarks(ignored=self.data.ignore_fields if trains else ())
            records = self._records(source, streamed)
            try:
                for row in records:
                    if not isinstance(row, BadRow):
                        found = True
                        if row.unused or row.missing or row.beside or remarks.absent or row.ignored or row.doubts:
                            remarks.add(row)
                            self.remarks[str(source)] = max(self.remarks.get(str(source), remarks), remarks, key=len)
                        yield row
                    elif self.data.on_bad_row == "skip":
                        first = str(row) if not bad else first
                        bad += 1
                        self.skipped[str(row)] = None
                    else:
                        raise BadRow(f"{row}{self._others(key, records, found)}")
                if row is None:
                    what = source if len(sources) > 1 else "the file"
                    raise BadRow(f"{key}={name}: {what} holds no rows.")
            except BadRow as error:
                raise UserError(str(error)) from error
            except OSError as error:
                raise UserError(f"{key}: {source}: the file can't be read ({error.strerror or error}).") from error
        if not found:
            raise UserError(f"{key}={name}: all rows are bad ({bad:,}). The first: {first}")

    def _others(self, key: str, rest: Iterator[Record | BadRow], found: bool) -> str:
        """How many more rows are bad, and the way to leave them out, which a set for metrics doesn't have.

        Args:
            key: Names the set.
            rest: What follows the first bad row.
            found: Whether there were good rows before it.
        """
        good, bad, until = found, 1, time.monotonic() + _SECONDS
        try:
            for row in islice(rest, _COUNTED):
                bad += isinstance(row, BadRow)
                good |= not isinstance(row, BadRow)
                if time.monotonic() > until:
                    break
        except (BadRow, OSError):  # it would be said once this row is right
            return ""
        if not good:  # the same is wrong with all
            return ""
        way = "" if key.startswith("data.test_files") else "; data.on_bad_row=skip leaves such rows out"
        return f" {number(bad, 'rows are bad')} of what was read{way}."

    def _records(self, source: Source, streamed: bool) -> Iterator[Record | BadRow]:
        records = records_of(source, self.data, streamed)
        for record in records:
            if records.format:
                self.formats[str(source)] = records.format
            yield record


def training(data: DataConfig) -> SplitReader:
    """The rows to train on: of `data.train_file`, of `data.train_files` mixed, or of `data.dataset_name`."""
    if data.dataset_name:
        return SplitReader(data, {"data.split": data.split}, data.max_train_samples)
    names = {key: name for key, name in data.named().items() if key.startswith("data.train_file")}
    return SplitReader(data, names, data.max_train_samples)


def validation(data: DataConfig) -> SplitReader | None:
    """The rows of `data.validation_file` or `data.validation_split`, if there is one."""
    if data.validation_split:
        return SplitReader(data, {"data.validation_split": data.validation_split})
    return SplitReader(data, {"data.validation_file": data.validation_file}) if data.validation_file else None


def tests(data: DataConfig) -> dict[str, SplitReader]:
    """The rows of each of `data.test_files`, by name; bad rows are never skipped, since metrics cover all rows."""
    data = replace(data, on_bad_row="error")
    return {
        name: SplitReader(data, {f"data.test_files.{name}": file}) for name, file in data.test_files.items() if file
    }


def data_files(data: DataConfig) -> list[Path]:
    """Every file of the sets, those of a folder that is `data.dataset_name`, and that of the user's own reader."""
    found: list[Path] = []
    for path in named_paths(data, "data."):
        if path.kind == "rows":
            found += find_files(path.name, path.key, any_type=":" in data.format)
        elif path.kind == "dataset" and resolve(path.name).is_dir():
            found += row_files(resolve(path.name), f"{path.key}={path.name}")
        elif path.kind == "function":
            found += with_neighbours(resolve(path.name))
    return found


def measured_files(data: DataConfig) -> list[Path]:
    """The same without the training set."""
    return data_files(replace(data, train_file="", train_files={}))


def require_conversation(part: SplitReader, record: Record) -> None:
    """Checks a test row.

    Raises:
        UserError: It is running text, which has no answer to compare with; or its answer is a bad one.
    """
    if record.messages is None:
        raise UserError(f"{part}: {record.where} is running text, and there is no answer in it to compare with.")
    if record.desirable is False and ":" in part.data.format:
        raise UserError(f"{part}: {record.where} has a bad answer (desirable=False), which isn't one to compare with.")


def read_tests(data: DataConfig) -> dict[str, list[Record]]:
    """The test rows of each file, by the file's name in `data.test_files`.

    Raises:
        UserError: A bad row (file and line), a file without rows, or a row that isn't a conversation.
    """
    if data.generator:
        from gemma_tune.data.formats.gym import held_out_tasks  # reasoning-gym takes a second

        return {"test": held_out_tasks(data)}
    found: dict[str, list[Record]] = {}
    for name, part in tests(data).items():
        found[name] = []
        for record in part:
            require_conversation(part, record)
            found[name].append(record)
    return found


_JSON, _TEXT = {".json", ".jsonl", ".ndjson"}, {".txt"}
_USED_BY = {"field": _JSON, "sample_by": _TEXT, "encoding": {*_JSON, *_TEXT, ".csv", ".tsv"}}


def _refuse_unused(data: DataConfig) -> None:
    """Refuses a key that says how files of a type are read where there is none of that type."""
    others = data.dataset_name or ":" in data.format
    kinds = set() if others else {file_type(path) for path in data_files(data)}
    for key, used_by in _USED_BY.items():
        if getattr(data, key) == getattr(DataConfig(), key) or kinds & used_by:
            continue
        if ":" in data.format:
            why = f"data.format={data.format} is a reader of your own, which opens its files itself; set it there"
        elif data.dataset_name:
            why = "the rows of data.dataset_name are loaded by `datasets`; for files of your own, set data.train_file"
        else:
            why = f"it is for files of the types {', '.join(sorted(used_by))}"
        raise UserError(f"data.{key} has no effect: {why}.")


def check_first_rows(data: DataConfig) -> None:
    """Reads the first rows: most mistakes in a data file show there, and torch need not be imported to say so.

    Every run begins here: the rows read are reused later in the run, and those of earlier runs in this process are
    forgotten.

    Raises:
        UserError: A bad row (file and line), or no rows at all.
    """
    forget_cached_records()
    if data.generator:
        from gemma_tune.data.formats.gym import GymTasks  # reasoning-gym takes a second

        GymTasks(data, data.generator_seed, 1)[0]
        return
    _refuse_unused(data)
    trained = training(data)
    for part in filter(None, (trained if trained.names else None, validation(data))):
        deque(islice(part, _FIRST), maxlen=0)
    for part in tests(data).values():
        for record in islice(part, _FIRST):
            require_conversation(part, record)
