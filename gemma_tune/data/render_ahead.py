"""Renders rows while they are read: in several processes, or in this one where there are few."""

from __future__ import annotations

import pickle
import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import compress, islice
from pathlib import Path
from typing import Any

from gemma_tune.chat.text_tokenizer import TextTokenizer
from gemma_tune.cores import allowed_cores
from gemma_tune.data.chunk_counts import ChunkCounts
from gemma_tune.data.records import Record
from gemma_tune.data.render_worker import RenderProcess, answer
from gemma_tune.data.rendered_chunk import RenderedChunk, RowRenderer
from gemma_tune.data.rendering import split_answers
from gemma_tune.data.scratch import no_room, scratch_folder
from gemma_tune.data.split import Mask, TrainHeldOut
from gemma_tune.data.storage import ArrowRows
from gemma_tune.data.tokenized import TokenizedRows

_CHUNK = 500  # records that a process renders at once
# Records of so many bytes, pickled, are read before processes are started by themselves, each of which takes a second
_LARGE = 8 << 20
_MOST = 16  # processes, unless more are asked for: each takes memory, and a second to start
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time, and in how many


def cores() -> int:
    """How many processors this process may use, by its affinity and its container's quota."""
    allowed = allowed_cores()
    try:
        quota, period = map(int, _QUOTA.read_text("utf-8").split())
    except (OSError, ValueError):  # no such file, or "max": no quota
        return allowed
    return min(allowed, max(quota // period, 1))


class RenderAhead:
    """Records that are rendered in chunks while they are read, in the order of reading.

    Until a record comes that can't be (one with media, or that can't be pickled): then `done` is false, and the caller
    renders all of them itself.

    Args:
        tokenizer: As `reduced` gives it; with any other than a `TextTokenizer` nothing is rendered.
        max_length: The largest number of tokens in a row.
        labels: Whether rows may hold bad answers.
        processes: At most so many; None: one for each core, up to 16, where there is much to render; 1: this one.

    Attributes:
        processes: Those that have been started and not yet ended.
    """

    def __init__(self, tokenizer: Any, max_length: int, labels: bool, processes: int | None) -> None:
        self._tokenizer = tokenizer
        self._renderer = RowRenderer(tokenizer, max_length, labels)
        self._count = processes or min(cores(), _MOST)
        self._large = 0 if processes else _LARGE
        self._possible, self._read = isinstance(tokenizer, TextTokenizer), False
        self._pickled = b""  # the renderer
        self._waiting: list[bytes] = []  # chunks, until there are enough of them to start
        self._asked: deque[Future[bytes]] = deque()
        self.processes: list[RenderProcess] = []
        self._idle: queue.SimpleQueue[RenderProcess] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._folder: Any = None
        self._stored: Any = None
        self._places: list[int] = []  # of the chunks in the file

    def __enter__(self) -> RenderAhead:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        if self._stored is not None:
            self._stored.close()

    @property
    def done(self) -> bool:
        """Whether all records were rendered, once all were read."""
        return self._possible and self._read

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """The same records, which are rendered meanwhile.

        Raises:
            UserError: The disk has no room.
        """
        chunk: list[Record] = []
        for record in records:
            if self._possible:
                chunk.append(record)
                if len(chunk) == _CHUNK:
                    self._feed(chunk)
                    chunk = []
            yield record
        if chunk and self._possible:
            self._feed(chunk)
        while self._asked and self._possible:
            self._store(self._asked.popleft().result())
        for packed in self._waiting:  # too few to start a process
            if self._possible:
                self._store(answer(pickle.loads(packed), self._renderer))
        self._end()
        self._read = True

    def _feed(self, chunk: list[Record]) -> None:
        if self._count == 1:
            return self._store(answer(chunk, self._renderer))
        try:
            self._waiting.append(pickle.dumps(chunk, protocol=pickle.HIGHEST_PROTOCOL))
            if self._threads is None and sum(map(len, self._waiting)) < self._large:
                return None
            if not self._pickled:
                self._pickled = pickle.dumps(self._renderer.without_media, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception:  # values and parts of tokenizers that are written in Python may raise anything
            return self._give_up()
        threads = self._threads or self._start()
        for records in self._waiting:
            if len(self._asked) > 2 * self._count:
                self._store(self._asked.popleft().result())
            if self._possible:
                self._add_process()
            if self._possible:
                self._asked.append(threads.submit(self._ask, records))
        self._waiting.clear()
        return None

    def _start(self) -> ThreadPoolExecutor:
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="render")
        return self._threads

    def _add_process(self) -> None:
        """Starts a process where those that run have two chunks each to do."""
        busy = sum(not future.done() for future in self._asked)
        if len(self.processes) == self._count or busy < 2 * len(self.processes):
            return None
        try:
            self.processes.append(RenderProcess(self._pickled))
        except OSError:  # the system starts no more
            return None if self.processes else self._give_up()
        self._idle.put(self.processes[-1])
        return None

    def _ask(self, records: bytes) -> bytes:
        process = self._idle.get()
        try:
            return process.ask(records)
        finally:
            self._idle.put(process)

    def _store(self, chunk: bytes) -> None:
        """Stores the next chunk, pickled; empty where it can't be rendered so."""
        if not chunk:
            return self._give_up()
        try:
            if self._stored is None:
                self._folder = scratch_folder()
                self._stored = Path(self._folder.name, "chunks").open("w+b")  # noqa: SIM115 (open as long as the object)
            self._places.append(self._stored.tell())
            self._stored.write(chunk)
        except OSError as error:
            raise no_room("rendered rows", error) from error
        return None

    def _give_up(self) -> None:
        self._possible = False
        self._waiting.clear()
        self._end()

    def _end(self) -> None:
        for future in self._asked:
            future.cancel()
        for process in self.processes:
            process.end()
        if self._threads is not None:
            self._threads.shutdown()
        for process in self.processes:
            process.close()
        self.processes.clear()
        self._asked.clear()

    def chunks(self) -> Iterator[RenderedChunk]:
        """What became of the records, in order."""
        if self._stored is not None:
            self._stored.flush()
        for place in self._places:
            self._stored.seek(place)
            chunk: RenderedChunk = pickle.load(self._stored)
            yield chunk

    def store(self, rows: TokenizedRows, split: TrainHeldOut, chosen: Mask) -> ArrowRows:
        """Counts and stores the rows of those records that are chosen, as `TokenizedRows.keep` does one by one.

        Args:
            rows: Gets the counts.
            split: The records.
            chosen: Which of them, [N].

        Raises:
            UserError: A record that can't be rendered, unless such records are left out.
        """
        counted = ChunkCounts(rows)
        stored = ArrowRows.of_tables(counted.tables(self.chunks(), chosen))
        rows.ids, rows.trained_ids = counted.ids.found(), counted.trained_ids.found()
        records = split_answers(compress(split.part, chosen), self._tokenizer)
        # The numbers first: no record is read beyond the last of them
        used = (record for is_used, record in zip(counted.first, records, strict=False) if is_used)
        rows.records = list(islice(used, rows.most_kept))
        return stored

    def note(self, split: TrainHeldOut) -> None:
        """Tells a split where its repeated and leaked rows are, as `TrainHeldOut.train` does one by one."""
        begin = 0
        for chunk in self.chunks():
            end = begin + len(chunk.where)
            split.repeated_at.extend(compress(chunk.where, split.repeated[begin:end]))
            split.leaked_at.extend(compress(chunk.where, split.leaked[begin:end]))
            begin = end
