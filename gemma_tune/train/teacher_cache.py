"""The teacher's log-probabilities on disk: whole Arrow files, memory-mapped, in a folder that runs can share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch

from gemma_tune.chat import Rendered
from gemma_tune.errors import RunError, UserError
from gemma_tune.media.content import content_digest
from gemma_tune.models.head import TopK
from gemma_tune.models.towers.image_attention import image_attention
from gemma_tune.models.towers.towers import open_towers
from gemma_tune.models.unwrap import language_part, stored_tensors
from gemma_tune.processes import barrier, from_main, share
from gemma_tune.progress import phase, progress

_MOST_FILES = 100_000
_BATCH_TOKENS = 4096  # that the teacher reads at once, padding included
# A file is closed at whichever comes first: a killed run loses at most this much work
_FILE_BYTES, _FILE_SECONDS = 64 << 20, 600
_FIELDS = [
    pa.field("row", pa.binary(16)),  # `row_key`
    pa.field("ids", pa.list_(pa.int32())),  # [N, K], flat
    pa.field("log_probs", pa.list_(pa.float16())),  # [N, K], flat
]
_OF_ANOTHER = {
    "top_k": "another quant.teacher_top_k",
    "model": "another model",
    "tokenizer": "another tokenizer",
}


def row_key(row: Rendered, sight: Callable[[], str]) -> bytes:
    """A row's name in the cache, 16 bytes: a digest of its token ids, and of what is seen where it has media.

    Args:
        row: The row.
        sight: Gives the digest of what the teacher sees media with.
    """
    ids = np.asarray(row.input_ids, dtype=np.int32).tobytes()
    if not row.media:
        return hashlib.blake2b(ids, digest_size=16).digest()
    found = hashlib.blake2b(ids, digest_size=16, person=b"media")
    found.update(sight().encode())
    for medium in row.media:
        found.update(content_digest(medium["path"]))
    return found.digest()


class TeacherCache:
    """The top-k log-probabilities before each trained token of rows, by the rows' token ids and their media.

    `targets-00000.arrow`, `targets-00001.arrow`, … are Arrow IPC files with one entry for each row: 4 bytes for an id
    and 2 for its log-probability. Their schema names the teacher, its tokenizer and K. A file is written under another
    name and renamed once it is whole, so a killed run leaves none that is half-written. One run at a time may fill a
    folder; any number may read it.

    Args:
        folder: The folder; it is made where there is none.
        top_k: Log-probabilities for each trained token.
        model: A digest of the teacher's weights.
        tokenizer: A digest of its vocabulary.
        sight: Gives a digest of what it sees media with; asked for where a row has some.

    Raises:
        UserError: The folder holds the targets of another model, another tokenizer or another K, is of an earlier
            version, or a file in it is damaged.
    """

    def __init__(
        self, folder: Path, top_k: int, model: str, tokenizer: str, sight: Callable[[], str] = lambda: ""
    ) -> None:
        self.folder, self._k = folder, top_k
        self._key = partial(row_key, sight=cache(sight))
        self._schema = pa.schema(_FIELDS, {"top_k": str(top_k), "model": model, "tokenizer": tokenizer})
        self._places: dict[bytes, tuple[pa.RecordBatch, int]] = {}
        if (folder / "index.jsonl").is_file():
            raise self._unusable("this cache was written by an earlier version, in another format")
        folder.mkdir(parents=True, exist_ok=True)
        self._files = sorted(folder.glob("targets-*.arrow"))
        for file in self._files:
            self._map(file)

    def _unusable(self, why: str) -> UserError:
        return UserError(f"quant.teacher_folder={self.folder}: {why}; name another folder, or delete this one.")

    def _map(self, file: Path) -> None:
        """Makes the rows of a file known; their numbers stay on disk until they are asked for."""
        try:
            with file.open("rb") as f:
                content = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pa.ipc.open_file(pa.py_buffer(content))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (ValueError, OSError) as error:
            raise UserError(
                f"quant.teacher_folder={self.folder}: {file.name} is damaged ({error}); delete this file, and its rows "
                "are computed again."
            ) from error
        stored = {k.decode(): v for k, v in (reader.schema.metadata or {}).items()}
        wrong = [of for key, of in _OF_ANOTHER.items() if stored.get(key) != self._schema.metadata[key.encode()]]
        if wrong:
            raise self._unusable(f"this cache is of {' and '.join(wrong)}")
        for batch in batches:
            self._places |= {key: (batch, i) for i, key in enumerate(batch.column("row").to_pylist())}

    def __contains__(self, row: Rendered) -> bool:
        return self._key(row) in self._places

    def fill(self, rows: Iterable[Rendered], targets: Callable[[Sequence[Rendered]], Sequence[TopK]]) -> int:
        """Computes and writes what the cache lacks, the longest rows first.

        Args:
            rows: The rows that it must hold.
            targets: Gives the targets of some rows of similar length.

        Returns:
            How many rows were computed.
        """
        from_main(self._clean)  # before any process writes, and all have the same files from here on
        lacking = {self._key(row): row for row in rows if row not in self}
        missing = share(sorted(lacking.values(), key=lambda row: -len(row.input_ids)))
        done = 0
        if missing:
            phase(f"teacher: its probabilities for {len(missing):,} rows are computed once")
        with progress(total=len(missing), desc="teacher", unit=" rows") as bar:
            while done < len(missing):
                with self._new_file() as (file, writer):
                    begun, full = time.monotonic(), False
                    while done < len(missing) and not full:
                        count = max(1, _BATCH_TOKENS // len(missing[done].input_ids))
                        batch = missing[done : done + count]
                        writer.write_batch(self._encoded(batch, targets(batch)))
                        done += len(batch)
                        bar.update(len(batch))
                        full = file.tell() >= _FILE_BYTES or time.monotonic() - begun >= _FILE_SECONDS
        barrier()
        for file in sorted({*self.folder.glob("targets-*.arrow")} - {*self._files}):  # of the other processes
            self._map(file)
        return len(missing)

    def _clean(self) -> None:
        """Deletes half-written files of runs that were killed."""
        for part in self.folder.glob("targets-*.part"):
            if not psutil.pid_exists(int(part.stem.rpartition(".")[2])):
                part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _new_file(self) -> Iterator[tuple[Any, Any]]:
        """Writes the next file under a temporary name; renames and indexes it once complete."""
        last = int(self._files[-1].stem.removeprefix("targets-")) if self._files else -1
        number = next(
            n for n in share(range(_MOST_FILES)) if n > last
        )  # of processes that write at once, each has its own
        whole = self.folder / f"targets-{number:05}.arrow"
        part = whole.with_suffix(f".{os.getpid()}.part")
        try:
            with part.open("wb") as file, pa.ipc.new_file(file, self._schema) as writer:
                yield file, writer
            part.replace(whole)
        except BaseException:  # Ctrl-C, too
            part.unlink(missing_ok=True)
            raise
        self._files.append(whole)
        self._map(whole)

    def _encoded(self, rows: Sequence[Rendered], targets: Sequence[TopK]) -> pa.RecordBatch:
        offsets = np.cumsum([0, *(found.ids.numel() for found in targets)], dtype=np.int32)
        ids = torch.cat([found.ids.flatten() for found in targets]).to(torch.int32).cpu().numpy()
        log_probs = torch.cat([found.log_probs.flatten() for found in targets]).to(torch.float16).cpu().numpy()
        columns = [
            pa.array([self._key(row) for row in rows], pa.binary(16)),
            pa.ListArray.from_arrays(offsets, ids),
            pa.ListArray.from_arrays(offsets, log_probs),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def get(self, row: Rendered) -> TopK:
        """The targets of a row.

        Args:
            row: The row; of its labels none is looked at.

        Raises:
            KeyError: The cache lacks the row.
            RunError: The same of a row with media, whose files were others when the cache was filled.
        """
        try:
            batch, place = self._places[self._key(row)]
        except KeyError:
            if row.media:
                raise RunError(
                    f"{row.media[0]['path']}: the teacher hasn't seen this row: a file of it has changed since the run "
                    "began; begin the run anew."
                ) from None
            raise
        found, log_probs = (
            batch.column(name)[place].values.to_numpy().reshape(-1, self._k) for name in ("ids", "log_probs")
        )
        return TopK(torch.from_numpy(found.astype(np.int64)), torch.from_numpy(log_probs.astype(np.float32)))


def weights_digest(model: torch.nn.Module) -> str:
    """A digest of every weight, 32 hex digits."""
    return _tensors_digest(model.named_parameters())


def sight_digest(model: Any, tokenizer: Any) -> str:
    """A digest of the towers beside a model, its attention and its processor's settings, 64 hex digits."""
    media, attention = tokenizer.media, image_attention(language_part(model).config)
    settings = str(media.files.digest(media.model_type, media.images_kwargs, attention))
    return _tensors_digest(stored_tensors(open_towers(model).whole)) + settings


def _tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def vocabulary_digest(tokenizer: Any) -> str:
    """A digest of which token has which id, 32 hex digits."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.blake2b(vocabulary.encode(), digest_size=16).hexdigest()
