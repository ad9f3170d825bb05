"""The rows that are shown, with what happened to each, and the lengths of all rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np

from gemma_tune.chat import Rendered, form_of
from gemma_tune.config import Config, DataConfig
from gemma_tune.data import reading
from gemma_tune.data.split import digest
from gemma_tune.data.storage import ArrowRows
from gemma_tune.data.tokenized import KEPT, TokenizedRows
from gemma_tune.preview.figures import BatchingOption, Lengths, ways
from gemma_tune.preview.tokens import TokenTexts


@dataclass(frozen=True)
class PreviewRow:
    """One row as the model sees it.

    Attributes:
        where: File and line.
        row: Token ids and labels, after cutting: those that are trained on, unless the row is dropped. One with media
            that is dropped for its length is whole.
        length: Tokens before cutting.
        lost: Trained tokens that were cut off.
        dropped: Why the row is left out; empty where it isn't.
        equal_to: The earlier row that it equals, or None.
        leaked_to: The held-out or test row that it equals, or None.
    """

    where: str
    row: Rendered
    length: int
    lost: int
    dropped: str
    equal_to: str | None
    leaked_to: str | None

    @property
    def tokens(self) -> int:
        """Tokens after cutting."""
        return len(self.row.input_ids)

    @property
    def share(self) -> float:
        """The share of trained tokens."""
        return self.row.trained_tokens / self.tokens

    @property
    def is_cut(self) -> bool:
        """Whether tokens were cut off."""
        return self.length > self.tokens

    def badges(self) -> list[str]:
        """What happened to the row, in a few words each."""
        said = {
            f"cut: {self.tokens:,} of {self.length:,} tokens": self.is_cut,
            f"dropped: {self.dropped}": self.dropped,
            f"equal to {self.equal_to}": self.equal_to,
            f"leaked: also {self.leaked_to}": self.leaked_to,
        }
        return [text for text, holds in said.items() if holds]

    def cut_line(self) -> str:
        """A sentence about the tokens that were cut off."""
        left = self.length - self.tokens
        return f"cut here at train.max_length: {left:,} tokens are cut off, {self.lost:,} of them trained"


@dataclass(frozen=True)
class PreviewData:
    """All that is shown of the rows of a run.

    Attributes:
        train: The training rows.
        held_out: The validation rows.
        shown: The first training rows, each with what happened to it.
        lengths: Tokens of every row before cutting, [N].
        batches: The ways of batching the rows, with what is padding and what is computed.
        texts: The texts of the tokens.
        form: The name of the chat template.
    """

    train: TokenizedRows
    held_out: TokenizedRows
    shown: list[PreviewRow]
    lengths: Lengths
    batches: list[BatchingOption]
    texts: TokenTexts
    form: str


def preview_data(
    cfg: Config, tokenizer: Any, train: TokenizedRows, held_out: TokenizedRows, whole: TokenizedRows
) -> PreviewData:
    """Collects what is shown.

    Args:
        cfg: The configuration.
        tokenizer: The tokenizer that has rendered the rows.
        train: The training rows, as the trainer gets them.
        held_out: The validation rows.
        whole: The training rows before cutting, including those that cutting dropped.

    Raises:
        UserError: The held-out or test rows can't be read.
    """
    return PreviewData(
        train,
        held_out,
        shown_rows(cfg.data, train, whole, cfg.train.max_length),
        lengths_of(whole),
        ways(cfg, lengths_of(train), cast(ArrowRows, train.rendered).dataset),
        TokenTexts(tokenizer),
        form_of(tokenizer).name,
    )


def lengths_of(rows: TokenizedRows) -> Lengths:
    """Tokens of each row, [N], without reading the rows themselves."""
    stored = cast(ArrowRows, rows.rendered)
    column: Any = stored.dataset.data.column("input_ids")
    found = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
    return np.concatenate([np.zeros(0, np.int64), *found])


def shown_rows(data: DataConfig, train: TokenizedRows, whole: TokenizedRows, max_length: int) -> list[PreviewRow]:
    """The first rows read, at most as many as `TokenizedRows.records` keeps.

    Args:
        data: The files in which leaked rows are looked up.
        train: The training rows.
        whole: The same before cutting, including those that cutting dropped.
        max_length: Tokens per row at most.

    Raises:
        UserError: The held-out or test rows can't be read.
    """
    dropped, repeated, leaked = (set(w or ()) for w in (train.dropped, train.repeated, train.leaked))
    used = iter(train.rendered[:KEPT])
    firsts: dict[int, str] = {}
    known = _held_out(data, {digest(record) for record in whole.records if record.where in leaked})
    found = []
    for record, full in zip(whole.records, whole.rendered[:KEPT], strict=True):
        key, is_dropped = digest(record), record.where in dropped
        too_long = bool(full.media) and len(full.input_ids) > max_length
        why = f"longer than {max_length:,} tokens, and media are never cut" if too_long else "no trained token left"
        row = (full if too_long else full.cut(max_length)) if is_dropped else next(used)
        found.append(
            PreviewRow(
                record.where,
                row,
                len(full.input_ids),
                full.trained_tokens - row.trained_tokens,
                why if is_dropped else "",
                firsts.get(key) if record.where in repeated else None,
                known.get(key) if record.where in leaked else None,
            )
        )
        firsts.setdefault(key, record.where)
    return found


def _held_out(data: DataConfig, wanted: set[int]) -> dict[int, str]:
    """File and line of each of the wanted rows in the validation and test files, by its digest."""
    if not wanted:
        return {}
    others = filter(None, [reading.validation(data), *reading.tests(data).values()])
    found: dict[int, str] = {}
    for record in chain.from_iterable(others):
        if (key := digest(record)) in wanted:
            found.setdefault(key, record.where)
    return found
