"""Some records rendered as arrays, which processes hand to one another and which are counted at once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from gemma_tune.chat.text_tokenizer import TextTokenizer
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.rendering import fit_row, render_row, split_answers

# What becomes of a row
USED, CUT, DROPPED, REFUSED, WORSE = (1 << bit for bit in range(5))


@dataclass(frozen=True)
class RowRenderer:
    """How records become rows.

    Attributes:
        tokenizer: The tokenizer.
        max_length: The largest number of tokens in a row.
        labels: Whether rows may hold bad answers.
    """

    tokenizer: TextTokenizer
    max_length: int
    labels: bool

    @property
    def without_media(self) -> RowRenderer:
        """The same for a worker, which knows no media."""
        return replace(self, tokenizer=replace(self.tokenizer, media=None, no_media=None))


@dataclass(frozen=True)
class RenderedChunk:
    """What became of N records, R rows, of which those that are used have T tokens.

    Attributes:
        where: File and line of each record, [N].
        record: The place of each row's record among them, [R].
        state: What became of each row, [R].
        lengths: Tokens of each row, after cutting; 0 of those not used, [R].
        ids: The token ids of all rows, [T].
        trained: Whether the loss counts each of them, as bits, [T / 8].
        refused: Why rows are refused, by their numbers.
    """

    where: list[str]
    record: NDArray[np.int32]
    state: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    ids: NDArray[np.int32]
    trained: NDArray[np.uint8]
    refused: dict[int, str]


def render_chunk(records: Sequence[Record], renderer: RowRenderer) -> RenderedChunk:
    """Renders records without media; rows are counted where all are known."""
    places, states, lengths = array("i"), array("B"), array("i")
    ids, labels = list[bytes](), list[bytes]()
    refused: dict[int, str] = {}
    for place, given in enumerate(records):
        for record in split_answers([given], renderer.tokenizer):
            state, length = WORSE * (record.rejected is not None), 0
            try:
                whole = render_row(record, renderer.tokenizer, renderer.labels)
            except BadRow as error:
                refused[len(states)] = str(error)
                state |= REFUSED
            else:
                row, is_cut = fit_row(whole, renderer.max_length)
                state |= CUT * is_cut | (DROPPED if row is None else USED)
                if row is not None:
                    length = len(row.input_ids)
                    packed = Struct(f"{length}i").pack
                    ids.append(packed(*row.input_ids))
                    labels.append(packed(*row.labels))
            places.append(place)
            states.append(state)
            lengths.append(length)
    return RenderedChunk(
        where=[record.where for record in records],
        record=np.asarray(places),
        state=np.asarray(states),
        lengths=np.asarray(lengths),
        ids=np.frombuffer(b"".join(ids), np.int32),
        trained=np.packbits(np.frombuffer(b"".join(labels), np.int32) != -100),
        refused=refused,
    )
