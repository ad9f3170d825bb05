"""Rows that are read and rendered while training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from datasets import IterableDataset

from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.records import Record
from gemma_tune.data.split import in_share, once
from gemma_tune.data.storage import FEATURES
from gemma_tune.data.tokenized import TokenizedRows, render_rows
from gemma_tune.errors import UserError

_FIRST = 200  # rows that are rendered before training, to check their token ids against the vocabulary


def stream_rows(
    data: DataConfig, tokenizer: Any, max_length: int, seed: int, labels: bool = False
) -> tuple[TokenizedRows, TokenizedRows]:
    """The rows to train on as a stream, and those held out, which are read before training.

    The held-out share is the rows with the smallest digests, so whether a row is held out depends on that row alone.
    Duplicates are not looked for. `labels` as for `TokenizedRows`.

    Returns:
        The rows to train on, of which `rendered` and `records` hold the first ones, while the counts follow the current
        pass over the files; and the rows held out.

    Raises:
        UserError: A bad row (file and line), no rows at all, or no row left.
    """
    share, in_it = data.validation_split_percentage, in_share(data, seed)
    part, others = reading.training(data), reading.validation(data)
    skip = data.on_bad_row == "skip"

    def kept(held_out: bool) -> Iterator[Record]:
        return (r for r in part if in_it(r) == held_out) if share else iter(() if held_out else part)

    held_out_records = islice(once(kept(True)) if others is None else others, data.max_eval_samples)
    held_out = render_rows(held_out_records, tokenizer, max_length, "held-out rows", skip, labels)
    if share and not held_out.read:
        raise UserError(
            f"{part}: data.validation_split_percentage={share:g} holds none of these rows "
            "out; raise it, or name data.validation_file."
        )
    first = render_rows(islice(kept(False), _FIRST), tokenizer, max_length, "first rows", skip, labels)
    if not first.read:
        raise UserError(f"{part}: no row is left to train on.")
    train = replace(first)
    train.read_by(part)
    held_out.read_by(others)
    held_out.worse = 0

    def rendered() -> Iterator[dict[str, list[int]]]:
        train.begin()  # TRL looks at the first row beforehand
        # Without an end: Transformers can't resume exactly in a second epoch of a stream
        while True:
            yield from (vars(row) for row in train.use(kept(False), tokenizer, max_length))

    stream = IterableDataset.from_generator(rendered, features=FEATURES)
    train.dataset = stream.shuffle(seed=seed, buffer_size=data.shuffle_buffer_size)
    return train, held_out
