"""Counts rendered chunks into rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gemma_tune.data.rendered_chunk import CUT, DROPPED, REFUSED, USED, WORSE, RenderedChunk
from gemma_tune.data.split import Mask
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError


class _Ids:
    """The token ids that occur."""

    def __init__(self) -> None:
        self._seen = np.zeros(1, dtype=np.bool_)

    def add(self, ids: NDArray[np.int32]) -> None:
        if len(ids) and (most := int(ids.max())) >= len(self._seen):
            self._seen = np.concatenate([self._seen, np.zeros(most + 1 - len(self._seen), dtype=np.bool_)])
        self._seen[ids] = True

    def found(self) -> set[int]:
        return set(np.flatnonzero(self._seen).tolist())


class ChunkCounts:
    """Counts chunks into rows.

    Args:
        rows: Gets the counts.

    Attributes:
        first: Whether each row of the chosen records is used, up to the last one that is kept as it was read.
        ids: The token ids that occur.
        trained_ids: Those that occur where the loss counts.
    """

    def __init__(self, rows: TokenizedRows) -> None:
        self._rows, self._kept = rows, 0
        self.first: list[bool] = []
        self.ids, self.trained_ids = _Ids(), _Ids()

    def tables(self, chunks: Iterable[RenderedChunk], chosen: Mask) -> Iterator[pa.Table]:
        """The rows that are used of the chosen records, as a table for each chunk."""
        begin = 0
        for chunk in chunks:
            end = begin + len(chunk.where)
            if chosen[begin:end].any():
                yield self._table(chunk, chosen[begin:end][chunk.record])
            begin = end

    def _table(self, chunk: RenderedChunk, chosen: Mask) -> pa.Table:
        rows = self._rows
        for number, reason in chunk.refused.items():
            if chosen[number]:
                if not rows.skip_refused:
                    raise UserError(reason)
                rows.refused[reason] = None
        state = chunk.state * chosen
        used = state & USED != 0
        rows.worse += int(np.count_nonzero(state & WORSE))
        rows.cut += int(np.count_nonzero(state & CUT))
        rows.read += int(np.count_nonzero(chosen)) - int(np.count_nonzero(state & REFUSED))
        rows.dropped += [chunk.where[i] for i in chunk.record[state & DROPPED != 0]]
        if self._kept < rows.most_kept:
            self._kept += int(np.count_nonzero(used))
            self.first += used[chosen].tolist()
        lengths = chunk.lengths[used]
        begins = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        those = np.repeat(used, chunk.lengths)
        ids = chunk.ids[those]
        trained = np.unpackbits(chunk.trained, count=len(chunk.ids)).view(np.bool_)[those]
        rows.tokens += len(ids)
        # The first token of a row has no prediction
        rows.trained_tokens += int(np.count_nonzero(trained)) - int(np.count_nonzero(trained[begins[:-1]]))
        rows.longest = max(rows.longest, int(lengths.max(initial=0)))
        self.ids.add(ids)
        self.trained_ids.add(ids[trained])
        labels = np.where(trained, ids, np.int32(-100))
        lists = [pa.ListArray.from_arrays(begins, pa.array(column)) for column in (ids, labels)]
        return pa.table(lists, ["input_ids", "labels"])
