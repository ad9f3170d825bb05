"""Rows that are read and rendered while training goes on."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from datasets import Features, IterableDataset, Value

from gemma_tune.chat import Rendered
from gemma_tune.chat.recognise import reduced
from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.records import Record
from gemma_tune.data.rendering import split_answers
from gemma_tune.data.split import in_share, once
from gemma_tune.data.storage import FEATURES, WITH_MEDIA
from gemma_tune.data.tokenized import TokenizedRows, render_rows
from gemma_tune.errors import UserError
from gemma_tune.processes import gathered, world

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
    tokenizer, skip = reduced(tokenizer, data.encode_by_word), data.on_bad_row == "skip"

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
    train = replace(first, most_kept=len(first.records))  # those of `rendered`; others come in another order
    train.read_by(part)
    held_out.read_by(others)
    held_out.worse = 0

    processes = world()
    media = any(row.media for row in first.rendered)

    def read() -> Iterator[dict[str, bytes]]:
        while True:  # without an end: Transformers can't resume exactly in a second epoch of a stream
            yield from ({"record": pickle.dumps(record)} for record in split_answers(kept(False), tokenizer))

    records = IterableDataset.from_generator(read, features=Features({"record": Value("binary")}))
    shuffled = records.shuffle(seed=seed, buffer_size=data.shuffle_buffer_size)

    def columns(row: Rendered) -> dict[str, Any]:
        if row.media and not media:
            raise UserError(
                f"{part}: a row holds {row.media[0]['path']}, and the first {_FIRST} rows hold no medium: put such a "
                "row among them, or read the rows before training (data.streaming=false)."
            )
        return {name: value for name, value in vars(row).items() if media or name != "media"}

    def rendered(shares: list[int]) -> Iterator[dict[str, Any]]:
        train.begin()  # TRL looks at the first row beforehand
        train.records = first.records
        begin, step = (shares[0], processes) if len(shares) == 1 else (0, 1)
        mine = (pickle.loads(row["record"]) for row in islice(shuffled, begin, None, step))
        yield from map(columns, train.use(mine, tokenizer, max_length))

    # accelerate gives each process one of the shares, and each renders its own records only
    train.dataset = IterableDataset.from_generator(
        rendered, features=WITH_MEDIA if media else FEATURES, gen_kwargs={"shares": [*range(processes)]}
    )
    return train, held_out


def add_counts(train: TokenizedRows) -> None:
    """Makes the counts of a stream those of all processes, each of which has rendered its share."""
    counted = ("read", "cut", "tokens", "trained_tokens", "worse")
    counts_here = {name: getattr(train, name) for name in counted}
    every = gathered((counts_here, train.longest, train.dropped, train.too_long, train.refused))
    for name in counted:
        setattr(train, name, sum(counts[name] for counts, *_ in every))
    train.longest = max(longest for _, longest, *_ in every)
    train.dropped = [where for *_, dropped, _, _ in every for where in dropped]
    train.too_long = [where for *_, too_long, _ in every for where in too_long]
    train.refused = {reason: None for *_, refused in every for reason in refused}
