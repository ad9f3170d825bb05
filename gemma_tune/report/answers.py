"""Answers side by side, and the rows that became right or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_tune.chat.calls import shown
from gemma_tune.compare.comparison import DifferingRow
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.report.blocks import Block, SampleAnswer, SampleAnswers, SampleRow, Text
from gemma_tune.report.figures import AFTER, BEFORE, Change, moved_line

_EXAMPLES = 5  # rows of a figure that became right, and as many that became wrong


def sample_rows(before: Evaluation, after: Evaluation) -> list[SampleRow]:
    """The answers to read, each beside the one before, where there was one."""
    old = {row["id"]: row for row in before.answers}
    rows = []
    for row in after.answers:
        sides = [_side(AFTER if old else "answer", row)]
        if row["id"] in old:
            sides.insert(0, _side(BEFORE, old[row["id"]]))
        rows.append(SampleRow(str(row.get("prompt", row["id"])), _shown(row.get("wanted")), sides))
    return rows


def moved_rows(change: Change) -> list[Block]:
    """How many rows of a figure changed which way, with examples of both."""
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
            blocks += [Text(f"Became {name}{some}:", "quiet"), SampleAnswers([_asked(row) for row in part[:_EXAMPLES]])]
    return blocks


def _asked(row: DifferingRow) -> SampleRow:
    sides = [_side(name, said) for name, said in zip((BEFORE, AFTER), row.rows, strict=True)]
    return SampleRow(row.text("prompt") or row.id, _shown(row.text("wanted")), sides)


def _side(name: str, row: Mapping[str, Any]) -> SampleAnswer:
    return SampleAnswer(name, _shown(row.get("answer")), _mark(row.get("score")), row.get("stopped") is False)


def _shown(text: Any) -> str | None:
    return None if text is None else shown(str(text))


def _mark(score: float | None) -> str:
    if score is None:
        return ""
    return {0.0: "wrong", 1.0: "right"}.get(float(score), f"{score:.4g}")


def marks(sides: Sequence[SampleAnswer]) -> list[str]:
    """How each answer is, as a sign: ✓ or ✗, or its score."""
    return [{"right": "✓", "wrong": "✗"}.get(side.mark, side.mark) for side in sides]
