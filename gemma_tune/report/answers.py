"""Answers side by side, and the rows that became right or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_tune.compare.comparison import DifferingRow
from gemma_tune.compare.wording import shown_text
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.page.blocks import Block, SampleAnswer, SampleRow, Samples, Text
from gemma_tune.page.media import Gallery
from gemma_tune.report.figures import AFTER, BEFORE, Change, moved_line

_EXAMPLES = 5  # rows of a figure that became right, and as many that became wrong


def sample_rows(before: Evaluation, after: Evaluation, gallery: Gallery | None = None) -> list[SampleRow]:
    """The sample answers, each beside the answer before training where there is one.

    Args:
        before: The evaluation before training, perhaps empty.
        after: The evaluation after training.
        gallery: What shows the media of their prompts; None: they are only named.
    """
    old, gallery = {row["id"]: row for row in before.answers}, gallery or Gallery(0)
    rows = []
    for row in after.answers:
        answers = [_answer(AFTER if old else "answer", row)]
        if row["id"] in old:
            answers.insert(0, _answer(BEFORE, old[row["id"]]))
        media = gallery.media(row.get("media"))
        rows.append(SampleRow(str(row.get("prompt", row["id"])), shown_text(row.get("wanted")), answers, media=media))
    return rows


def moved_rows(change: Change, gallery: Gallery) -> list[Block]:
    """How many rows of a figure got better and how many worse, with examples of both.

    Args:
        change: The figure.
        gallery: What shows the media of the examples.
    """
    line = moved_line(change)
    if line is None or change.figure is None:
        return []
    blocks: list[Block] = [Text(f"{line}.")]
    rows = change.figure.rows
    better = [row for row in rows if row.scores[1] > row.scores[0]]
    worse = [row for row in rows if row.scores[1] < row.scores[0]]
    names = ("right", "wrong") if change.figure.binary else ("better", "worse")
    for name, part in zip(names, (better, worse), strict=True):
        if part:
            some = f", {_EXAMPLES} of {len(part):,}" if len(part) > _EXAMPLES else ""
            blocks += [
                Text(f"Became {name}{some}:", "quiet"),
                Samples([_sample(row, gallery) for row in part[:_EXAMPLES]]),
            ]
    return blocks


def _sample(row: DifferingRow, gallery: Gallery) -> SampleRow:
    answers = [_answer(name, own) for name, own in zip((BEFORE, AFTER), row.rows, strict=True)]
    prompt, media = row.text("prompt") or row.id, gallery.media(row.media)
    return SampleRow(prompt, shown_text(row.text("wanted")), answers, media=media)


def _answer(name: str, row: Mapping[str, Any]) -> SampleAnswer:
    score = row.get("score")
    mark = "" if score is None else {0.0: "wrong", 1.0: "right"}.get(float(score), f"{score:.4g}")
    return SampleAnswer(name, shown_text(row.get("answer")), mark, row.get("stopped") is False)
