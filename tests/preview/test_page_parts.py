"""Token texts and the figures on lengths, against plain Transformers, TRL and counts by hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import pack_dataset

from gemma_tune.chat import Rendered
from gemma_tune.cli.compose import compose_config
from gemma_tune.page.histogram import length_chart
from gemma_tune.preview.figures import (
    BatchingOption,
    histogram,
    nice_step,
    packed,
    percentiles,
    sharing_hint,
    ways,
)
from gemma_tune.preview.tokens import TokenTexts, runs

TEXT = "Grüße 😀👩‍👩‍👧 你好!\n\tTwo  spaces <b>&amp;</b>\x1b[31m\u200b\u202e end"


def row(ids: list[int], trained: range) -> Rendered:
    return Rendered(ids, [i if place in trained else -100 for place, i in enumerate(ids)])


def unlike(lengths: np.ndarray) -> Dataset:
    """Rows that begin unlike each other, of which the last token is trained."""
    ids = [[n + 9] * length for n, length in enumerate(lengths.tolist())]
    return Dataset.from_dict({"input_ids": ids, "labels": [[*[-100] * (len(row) - 1), row[0]] for row in ids]})


def test_pieces_say_the_text(tiny: Path) -> None:
    """Every id once and in order, whole characters, nothing that a terminal or a browser would obey."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer("<bos>" + TEXT + "<end_of_turn>", add_special_tokens=False)["input_ids"]
    pieces = TokenTexts(tokenizer).pieces(row(ids, range(0)))
    assert [i for piece in pieces for i in piece.ids] == ids
    said = "".join(piece.text for piece in pieces)
    seen = TEXT.replace("\n\t", "⏎\n⇥\t").replace("\x1b", "‹U+001B›")
    assert said == "<bos>" + seen.replace("\u200b", "‹U+200B›").replace("\u202e", "‹U+202E›") + "<end_of_turn>"
    assert "�" not in said
    assert [piece.text for piece in pieces if piece.special] == ["<bos>", "<end_of_turn>"]


def test_stretches(tiny: Path) -> None:
    """What the loss counts; the first token has no prediction, so it counts nowhere."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer("<bos>Set the light. Done.<eos>", add_special_tokens=False)["input_ids"]
    texts = TokenTexts(tokenizer)
    rendered = row(ids, range(3, 5))
    found = [(trained, [i for piece in run for i in piece.ids]) for trained, run in runs(texts.pieces(rendered))]
    assert found == [(False, ids[:3]), (True, ids[3:5]), (False, ids[5:])]
    every = texts.pieces(row(ids, range(len(ids))))
    assert [piece.trained for piece in every] == [False] + [True] * (len(every) - 1)
    assert sum(len(piece.ids) for piece in every if piece.trained) == row(ids, range(len(ids))).trained_tokens


def test_bytes_of_one_character_stay_together(tiny: Path) -> None:
    """Where the mask changes between two bytes, they are shown apart; a character that was cut in half, as such."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer("😀", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    texts = TokenTexts(tokenizer)
    assert [piece.text for piece in texts.pieces(row(ids, range(0)))] == ["😀"]
    assert [piece.ids for piece in texts.pieces(row(ids, range(2, 4)))] == [tuple(ids[:2]), tuple(ids[2:])]


@pytest.mark.parametrize("seed", range(4))
def test_packing_is_that_of_trl(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 129, 400)
    rows = Dataset.from_dict({"input_ids": [[1] * n for n in lengths]})
    assert packed(lengths, 128) == len(pack_dataset(rows, 128, "bfd"))


def test_padding() -> None:
    """Held against batches that are padded one by one."""
    lengths = np.array([5, 1, 9, 2, 2, 7, 4])
    cfg = compose_config("preview", ["train.per_device_train_batch_size=2", "train.train_sampling_strategy=sequential"])
    found = {batches.name: batches for batches in ways(cfg, lengths, unlike(lengths))}
    in_order = found["batches of 2, in the files' order"]
    room = 2 * 5 + 2 * 9 + 2 * 7 + 4
    assert (in_order.passes, in_order.chosen) == (4, True)
    assert in_order.padding == pytest.approx(1 - lengths.sum() / room)
    assert [b.chosen for b in found.values()].count(True) == 1
    one = compose_config("preview", ["train.per_device_train_batch_size=1", "train.max_length=10"])
    alone = ways(one, lengths, unlike(lengths))
    assert [b.padding for b in alone[:-1]] == [0, 0, 0]
    assert (alone[-1].passes, alone[-1].padding) == (4, 0.25)  # 9 + 1, 7 + 2, 5 + 4, 2


def test_like_lengths_pad_least() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    cfg = compose_config("preview", ["train.packing=true", "train.train_sampling_strategy=random"])
    mixed, alike, _, packs = ways(cfg, lengths, unlike(lengths))
    assert alike.padding < mixed.padding / 3
    assert [mixed.chosen, alike.chosen, packs.chosen] == [False, False, True]


def test_what_is_computed() -> None:
    """Held against counts by hand: five beginnings of 40 tokens, each with eight rows of 10 more."""
    ids = [[kind + 9] * 40 + [n + 100] * 10 for n in range(8) for kind in range(5)]
    rows = Dataset.from_dict({"input_ids": ids, "labels": [[*[-100] * 40, *row[40:]] for row in ids]})
    lengths = np.full(40, 50)
    words = ["train.per_device_train_batch_size=4", "train.train_sampling_strategy=sequential"]
    mixed, in_order, _, alike, packs = ways(compose_config("preview", words), lengths, rows)
    # The last token predicts nothing, and the beginning's last is a part of each row
    assert alike.computed == pytest.approx((39 + 4 * 10) / 200)
    assert in_order.computed == 1 and packs.computed == 1 and alike.computed < mixed.computed < 1
    # Another kernel computes whole rows, and training refuses to group them by beginning
    found = ways(compose_config("preview", [*words, "model.attn_implementation=sdpa"]), lengths, rows)
    assert {way.computed for way in found} == {None} and sharing_hint(found) is None


def test_a_hint_where_beginnings_would_save_a_fifth() -> None:
    def hint(chosen: str, now: float | None, grouped: float | None) -> str | None:
        shares = {"mixed": now, "grouped": grouped, "packs": 1.0}
        return sharing_hint([BatchingOption(name, 1, 0.0, share, name == chosen) for name, share in shares.items()])

    said = "train.train_sampling_strategy=group_by_beginning would compute 40% of the tokens in place of 55%"
    assert (hint("mixed", 0.55, 0.4) or "").startswith(said)
    assert "group_by_beginning with train.packing=false would" in (hint("packs", 0.4, 0.4) or "")
    assert hint("mixed", 0.55, 0.45) is hint("grouped", 0.55, 0.4) is hint("mixed", None, None) is None


@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [3, 100_000], [10] * 99 + [50_000], list(range(1, 400))])
def test_every_row_stands_in_one_bar(lengths: list[int]) -> None:
    counted = histogram(np.array(lengths), 1024)
    for place, rows in enumerate(counted.rows):
        assert rows == sum(place * counted.width <= n < (place + 1) * counted.width for n in lengths)
    assert counted.longer == sum(n >= counted.end for n in lengths)
    assert len(counted.rows) <= 62


def test_the_histogram_reaches_max_length() -> None:
    """Unless that is far beyond the rows."""
    lengths = np.arange(1, 101)
    assert 200 <= histogram(lengths, 200).end < 220 and histogram(lengths, 50).end < 120
    assert histogram(lengths, 1024).end < 120


def test_every_mark_stands_on_the_axis() -> None:
    """Within the bars to scale; beyond them in order behind a break, with its number at the axis."""
    lengths = np.arange(1, 101)
    for max_length, broken in ((60, False), (200, False), (1024, True)):
        counted = histogram(lengths, max_length)
        chart = length_chart(counted, percentiles(lengths), max_length)
        (place,) = map(float, re.findall(r'<line class="mark limit" x1="([\d.]+)"', chart))
        bars = [
            (float(x), float(w))
            for x, w in re.findall(r'<rect class="bar[^"]*" x="([\d.]+)" y="[^"]*" width="([\d.]+)"', chart)
        ]
        scale = (bars[-1][0] - bars[0][0]) / (len(bars) - 1) / counted.width
        assert ('class="break"' in chart) == broken == (max_length > counted.end)
        if broken:
            assert bars[-1][0] + bars[-1][1] < place < 708 and ">1,024</text>" in chart
        else:
            assert place == pytest.approx(62 + max_length * scale, abs=0.5)


def test_percentiles_are_lengths_of_rows() -> None:
    assert percentiles(np.arange(1, 101)) == {"median": 50, "95 %": 95, "longest": 100}
    assert percentiles(np.array([7])) == {"median": 7, "95 %": 7, "longest": 7}


def test_steps() -> None:
    assert [nice_step(span, 10) for span in (5, 15, 30, 90, 150, 300, 2500)] == [1, 2, 5, 10, 20, 50, 500]


def test_chart_names_every_figure() -> None:
    lengths = np.array([10] * 99 + [50_000])
    counted = histogram(lengths, 2048)
    chart = length_chart(counted, percentiles(lengths), 2048)
    for label in ("median 10<", "95 % 10<", "longest 50,000<", "train.max_length 2,048<", ">longer<", ">rows<"):
        assert label in chart, label
    assert chart.count("<rect") == len(counted.rows) + 1
