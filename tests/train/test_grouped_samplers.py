"""Batches of rows of like length or beginning: every row once, an order that can be repeated, little to compute."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from datasets import Dataset

from gemma_tune.cli.compose import compose_config
from gemma_tune.data.loading import load_rows
from gemma_tune.models.kernels.compact_batch import computed_tokens
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source
from gemma_tune.train.grouped_samplers import (
    BeginningGroups,
    GroupedSampler,
    LengthGroups,
    beginning,
    beginnings,
    lengths,
)
from gemma_tune.train.sft import GemmaSFTTrainer

Make = Callable[[int, int, int], GroupedSampler]


def _by_length(rows: int, size: int, seed: int) -> GroupedSampler:
    rng = random.Random(rows)
    return LengthGroups([rng.randint(200, 550) for _ in range(rows)], size, seed)


def _by_beginning(rows: int, size: int, seed: int) -> GroupedSampler:
    rng = random.Random(rows)
    return BeginningGroups([_prefix(rng.choice("abcdefgh"), rng.choice("xyz")) for _ in range(rows)], size, seed)


def _prefix(*blocks: str) -> bytes:
    """A beginning of one block for each word."""
    return b"".join(word.encode().ljust(4) for word in blocks)


def _padding(lengths: list[int], order: list[int], size: int) -> float:
    batches = [[lengths[i] for i in order[n : n + size]] for n in range(0, len(order), size)]
    padded = sum(max(b) * len(b) for b in batches)
    return 1 - sum(lengths) / padded


@pytest.mark.parametrize("make", [_by_length, _by_beginning])
@pytest.mark.parametrize("rows", [1, 3, 4, 32, 33, 1350])
def test_every_row_once(rows: int, make: Make) -> None:
    sampler = make(rows, 4, 0)
    assert sorted(sampler) == list(range(rows)) and len(sampler) == rows


@pytest.mark.parametrize("make", [_by_length, _by_beginning])
def test_the_order_can_be_repeated(make: Make) -> None:
    """The same for the same seed and epoch; another one in the next epoch."""
    first, again, other = make(400, 4, 7), make(400, 4, 7), make(400, 4, 8)
    order = list(first)
    assert order == list(first) == list(again) != list(other)
    first.set_epoch(1)
    assert list(first) != order
    again.set_epoch(1)  # a run that is resumed in its second epoch
    assert list(first) == list(again)


def test_like_lengths_from_all_over() -> None:
    """Little padding; not from long to short."""
    lengths = [random.Random(i).randint(1, 999) for i in range(400)]
    order = list(LengthGroups(lengths, 4, 7))
    assert _padding(lengths, order, 4) < 0.05 < _padding(lengths, list(range(400)), 4)
    tops = [lengths[order[n]] for n in range(0, 400, 4)]
    falls = sum(a >= b for a, b in itertools.pairwise(tops))
    assert 35 < falls < 65


def test_no_batch_straddles_where_it_need_not() -> None:
    """Whole batches of each beginning; what they leave joins the nearest one, and the rest of all comes last."""
    kinds = [(one, two) for one in "ab" for two in "xy" for _ in range(6)] + [("c", "x")] * 3
    rows = random.Random(0).sample(kinds, len(kinds))
    sampler = BeginningGroups([_prefix("all", *kind) for kind in rows], 4, seed=0)
    beside: set[frozenset[int]] = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        order = list(sampler)
        batches = [Counter(rows[i] for i in order[n : n + 4]) for n in range(0, len(order), 4)]
        assert len(batches[-1]) == 1 and batches[-1]["c", "x"] == 3
        assert sorted(len(batch) for batch in batches[:-1]) == [1, 1, 1, 1, 2, 2]
        assert all(len({one for one, _ in batch}) == 1 for batch in batches)
        beside |= {frozenset(order[n : n + 4]) for n in range(0, len(order), 4)}
    assert len(beside) > 20 * 7 / 2  # rows meet others in other epochs


def test_small_beginnings_meet_others_in_each_epoch() -> None:
    """Eight beginnings of two rows each have as much in common with each other: 28 pairs could share a batch."""
    rows = [kind for kind in "abcdefgh" for _ in range(2)]
    sampler = BeginningGroups([_prefix("all", kind) for kind in rows], 4, seed=0)
    pairs: set[frozenset[str]] = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        order = list(sampler)
        pairs |= {frozenset(rows[i] for i in order[n : n + 4]) for n in range(0, 16, 4)}
    assert {len(pair) for pair in pairs} == {2} and len(pairs) > 20


def test_what_a_row_begins_with() -> None:
    """Tokens before the first label count, in blocks of eight; the first token is never predicted."""
    ids = list(range(100, 130))
    labels = [-100] * 20 + ids[20:]
    begun = beginning(ids, labels)
    assert len(begun) == 2 * 4 and begun == beginning([*ids[:16], *[7] * 14], labels)
    assert begun == beginning(ids, [5, *labels[1:]])
    assert beginning([*ids[:8], 7, *ids[9:]], labels)[:4] == begun[:4]
    assert beginning([*ids[:8], 7, *ids[9:]], labels)[4:] != begun[4:]
    assert beginning(ids[:5], [-100] * 5) == b"" and beginning(ids, [-100] * 30)[:8] == begun


def _order(rows: int, accumulated: int, processes: int, dataset: Dataset) -> list[int]:
    args = SimpleNamespace(
        train_sampling_strategy="group_by_beginning", seed=3, data_seed=None, train_batch_size=rows,
        gradient_accumulation_steps=accumulated, world_size=processes,
    )  # fmt: skip
    trainer = SimpleNamespace(args=args, train_dataset=dataset)
    return list(GemmaSFTTrainer._get_train_sampler(trainer))  # type: ignore[arg-type]


def test_lengths() -> None:
    rows = [[1] * (n % 7 + 1) for n in range(2500)]
    dataset = Dataset.from_dict({"input_ids": rows}).select(range(5, 2400, 3))
    assert lengths(dataset) == [len(row) for row in rows[5:2400:3]]


def test_steps_have_the_same_rows_on_any_number_of_processes() -> None:
    """Of a step of 32 rows each eight begin alike, so it has several beginnings."""
    ids = [[n % 8] * 16 + [n] for n in range(320)]
    dataset = Dataset.from_dict({"input_ids": ids, "labels": [[*[-100] * 16, n] for n in range(320)]})
    order = _order(8, 4, 1, dataset)
    assert order == _order(8, 1, 4, dataset) == _order(4, 4, 2, dataset) == _order(32, 1, 1, dataset)
    steps = [[order[m : m + 8] for m in range(n, n + 32, 8)] for n in range(0, 320, 32)]
    assert all(len({row % 8 for row in micro}) == 1 for step in steps for micro in step)
    assert sum(len({micro[0] % 8 for micro in step}) for step in steps) > 2 * len(steps)


def test_tokens_of_the_sample_that_are_computed() -> None:
    """Of 463,674: 381,566 in random order, and 263,578 of rows that are sorted by their tokens and cut into batches."""
    cfg = compose_config("lora_sft")
    rows = load_rows(cfg.data, load_tokenizer(find_source(cfg.model)), cfg.train.max_length, cfg.seed)[0].dataset
    order = list(BeginningGroups(beginnings(rows), 4, seed=0))
    batches = [rows[order[n : n + 4]] for n in range(0, len(order), 4)]
    found = sum(computed_tokens(list(zip(b["input_ids"], b["labels"], strict=True))) for b in batches)
    assert 250_000 < found < 258_000
