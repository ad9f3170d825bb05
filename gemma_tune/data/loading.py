"""The rows of a run: read, split, rendered and counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

from gemma_tune.chat.recognise import reduced
from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.records import Record
from gemma_tune.data.render_ahead import RenderAhead
from gemma_tune.data.rendering import find_records, render_record, split_answers
from gemma_tune.data.split import Mask, TrainHeldOut, drawn_rows, split_rows
from gemma_tune.data.tokenized import TokenizedRows, render_rows, store_rows
from gemma_tune.processes import once_per_node

_TRAINING, _HELD_OUT = "training rows", "held-out rows"
R = TypeVar("R", bound=TokenizedRows)


def load_rows(
    data: DataConfig, tokenizer: Any, max_length: int, seed: int, labels: bool = False
) -> tuple[TokenizedRows, TokenizedRows]:
    """The rendered rows to train on and those held out (perhaps none); `labels` as for `TokenizedRows`.

    Raises:
        UserError: A bad row (file and line), no rows at all, or no row left.
    """
    return once_per_node(lambda: _load(data, tokenizer, max_length, seed, labels))


def _load(
    data: DataConfig, tokenizer: Any, max_length: int, seed: int, labels: bool
) -> tuple[TokenizedRows, TokenizedRows]:
    tokenizer, skip = reduced(tokenizer, data.encode_by_word), data.on_bad_row == "skip"

    def rendered(records: Iterable[Record], name: str) -> TokenizedRows:
        return render_rows(records, tokenizer, max_length, name, skip, labels)

    def chosen(which: Mask, name: str) -> TokenizedRows:
        rows = TokenizedRows(skip_refused=skip, labels=labels)
        return store_rows(rows, lambda: ahead.store(rows, split, which), max_length, name)

    with RenderAhead(tokenizer, max_length, labels, data.dataset_num_proc) as ahead:
        split = split_rows(data, seed, ahead.watch)
        if ahead.done:
            ahead.note(split)
        train = chosen(~split.drawn, _TRAINING) if ahead.done else rendered(split.train(), _TRAINING)
        ahead_too = ahead.done and split.others is None
        held_out = chosen(split.drawn_once, _HELD_OUT) if ahead_too else rendered(split.held_out(), _HELD_OUT)
    return note_reading(split, train, held_out)


def note_reading(split: TrainHeldOut, train: R, held_out: R) -> tuple[R, R]:
    """Adds to both what the split has found: formats, bad rows, duplicates and leaked rows."""
    held_out.worse = 0
    train.read_by(split.part)
    held_out.read_by(split.others)
    train.repeated, train.leaked = split.repeated_at, split.leaked_at
    return train, held_out


def load_held_out(data: DataConfig, tokenizer: Any, max_length: int, seed: int) -> TokenizedRows:
    """The rendered held-out rows, perhaps none; training rows are read only where a share of them is held out.

    Raises:
        UserError: As `load_rows`.
    """
    part = reading.validation(data)
    share = data.validation_split_percentage
    records = drawn_rows(data, seed) if share else islice(part or (), data.max_eval_samples)
    tokenizer = reduced(tokenizer, data.encode_by_word)
    rows = render_rows(records, tokenizer, max_length, _HELD_OUT, data.on_bad_row == "skip", labels=True)
    rows.read_by(part)
    rows.worse = 0  # which answers are used is the evaluators' matter
    return rows


def find_rows(data: DataConfig, tokenizer: Any, max_length: int, wanted: Sequence[Sequence[int]]) -> list[str]:
    """Finds training rows by their token ids; rows are rendered again until all are found.

    Args:
        data: Names the files.
        tokenizer: A fast tokenizer.
        max_length: The largest number of tokens in a row.
        wanted: Rows as token ids.

    Returns:
        `file:line` of each that is found; of equal rows only the first.
    """
    tokenizer = reduced(tokenizer, data.encode_by_word)
    records = split_answers(reading.training(data), tokenizer)
    return find_records(records, lambda r: {tuple(render_record(r, tokenizer).input_ids[:max_length])}, wanted)
