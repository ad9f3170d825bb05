"""Splits the rows into those to train on and those held out, and finds duplicates, before any row is rendered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_tune.collector import look_as_usual
from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.reading import SplitReader
from gemma_tune.data.records import Record
from gemma_tune.data.remarks import number
from gemma_tune.errors import UserError
from gemma_tune.media.content import content_key
from gemma_tune.media.kinds import KINDS
from gemma_tune.progress import progress

_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False)  # made once: `json.dumps` makes one for each row
Mask = NDArray[np.bool_]
Watch = Callable[[Iterable[Record]], Iterator[Record]]


def digest(record: Record, seed: int = 0) -> int:
    """A 64-bit digest of a row that ignores the order of fields and blanks around texts."""
    said: list[Any] = [_trimmed(record.messages), (record.text or "").strip(), record.tools]
    if record.rejected is not None:
        said.append(_trimmed(record.rejected))
    if record.desirable is not None:
        said.append(record.desirable)
    text = _JSON.encode(said)
    key = seed.to_bytes(16, "little")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")


def _trimmed(messages: list[dict[str, Any]] | None) -> Any:
    return [{k: v.strip() if isinstance(v, str) else _told(v) for k, v in m.items()} for m in messages or ()]


def _told(value: Any) -> Any:
    """A content of parts, its media by what their files hold: where they lie tells no row from another."""
    if not isinstance(value, list):
        return value
    return [{**p, kind: content_key(p[kind])} if (kind := _medium_of(p)) else p for p in value]


def _medium_of(part: Any) -> str | None:
    """The kind of a part that names a medium's file."""
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if kind in KINDS and isinstance(part.get(kind), str) else None


def _digests(part: SplitReader, seed: int, watch: Watch = iter) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The digest of every row, and a hash of its file and line, [N] each."""
    bar = progress(watch(part), desc=f"read {part}"[:40], unit=" rows")
    found = np.fromiter(((digest(r, seed), hash(r.where)) for r in bar), dtype=[("row", "u8"), ("where", "i8")])
    return found["row"], found["where"]


def _seen(values: NDArray[Any]) -> Mask:
    """Whether each value equals an earlier one, [N]."""
    order = np.argsort(values, kind="stable")
    seen = np.zeros(len(values), dtype=np.bool_)
    seen[order[1:]] = values[order[1:]] == values[order[:-1]]
    return seen


@dataclass(frozen=True)
class TrainHeldOut:
    """The rows of a run, split in two; each row is read when it is asked for.

    Attributes:
        part: All rows that may be trained on, N.
        others: The rows of `data.validation_file`, if there is one.
        drawn: Whether each row of `part` is held out, [N]: the share with the smallest digests, so that equal rows stay
            together and the split doesn't depend on the order of the file.
        reread: Whether each row of `part` was read before, since its set was restarted (all_exhausted), [N].
        repeated: Whether each row is to be trained on and equals an earlier row, [N].
        leaked: Whether each row is to be trained on and is also in the held-out or test set, [N].
        limit: The largest number of held-out rows.
        repeated_at: `file:line` of the repeated rows, once `train` has been read.
        leaked_at: The same for the leaked ones.
    """

    part: SplitReader
    others: SplitReader | None
    drawn: Mask
    reread: Mask
    repeated: Mask
    leaked: Mask
    limit: int | None
    repeated_at: list[str] = field(default_factory=list)
    leaked_at: list[str] = field(default_factory=list)

    def train(self) -> Iterator[Record]:
        """The rows to train on, in the files' order."""
        for record, drawn, again, elsewhere in zip(self.part, self.drawn, self.repeated, self.leaked, strict=True):
            if again:
                self.repeated_at.append(record.where)
            if elsewhere:
                self.leaked_at.append(record.where)
            if not drawn:
                yield record

    @property
    def drawn_once(self) -> Mask:
        """Which rows of `part` are held out, each once and as many as may be, [N]."""
        drawn = self.drawn & ~self.reread
        return drawn if self.limit is None else drawn & (np.cumsum(drawn) <= self.limit)

    def held_out(self) -> Iterator[Record]:
        """The rows held out, in the files' order."""
        if self.others is not None:
            return islice(self.others, self.limit)
        return compress(self.part, self.drawn_once) if self.drawn.any() else iter(())


def in_share(data: DataConfig, seed: int) -> Callable[[Record], bool]:
    """Whether a row of a stream is held out: its digest is among the smallest of all that there could be."""
    share = round(data.validation_split_percentage / 100 * 2**64)
    return lambda record: digest(record, seed) < share


def once(records: Iterable[Record]) -> Iterator[Record]:
    """Each row once, even where a mixed set is restarted."""
    seen: set[str] = set()
    for record in records:
        if record.where not in seen:
            seen.add(record.where)
            yield record


def split_rows(data: DataConfig, seed: int, watch: Watch = iter) -> TrainHeldOut:
    """Reads every row once.

    Args:
        data: Names the files.
        seed: Seed of the held-out share.
        watch: Is given the records of the training set, which it gives again.

    Raises:
        UserError: A bad row (file and line), a file without rows, or none left to train on.
    """
    look_as_usual()
    part, others = reading.training(data), reading.validation(data)
    found, where = _digests(part, seed, watch)
    elsewhere = [_digests(p, seed)[0] for p in (*([others] if others else []), *reading.tests(data).values())]

    drawn = np.zeros(len(found), dtype=np.bool_)
    if data.validation_split_percentage:
        n = max(1, round(len(found) * data.validation_split_percentage / 100))
        drawn = found <= np.partition(found, n - 1)[n - 1]
        if drawn.all():
            raise UserError(
                f"{part}: holding out {len(found)} of {number(len(found), 'rows')} leaves none to train on."
            )
    again = _seen(where)
    repeated = _seen(found) & ~again & ~drawn
    leaked = np.isin(found, np.concatenate(elsewhere or [found[:0]])) & ~again & ~drawn
    return TrainHeldOut(part, others, drawn, again, repeated, leaked, data.max_eval_samples)


def drawn_rows(data: DataConfig, seed: int) -> Iterator[Record]:
    """The rows that a run with `data.validation_split_percentage` holds out, without its training rows.

    Raises:
        UserError: As `split_rows`.
    """
    if data.streaming:
        return islice(once(filter(in_share(data, seed), reading.training(data))), data.max_eval_samples)
    return split_rows(data, seed).held_out()
