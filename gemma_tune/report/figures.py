"""The figures before and after training, and their differences on the same rows, all with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gemma_tune.compare.comparison import LEVEL, ComparedFigure, ModelStats, compare_models, lower_is_better
from gemma_tune.compare.results import results_of
from gemma_tune.compare.wording import Numbers, Wording
from gemma_tune.evals.base import ScoredRow
from gemma_tune.evals.evaluation import Evaluation, as_text
from gemma_tune.evals.no_call import WITHOUT_CALL
from gemma_tune.evals.statistics import Interval, interval, is_binary
from gemma_tune.page.blocks import FigureText

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Change:
    """One figure before and after.

    Attributes:
        name: Its name.
        before: Its value before training.
        after: Its value after.
        difference: After minus before; None where the rows aren't the same, or there are none.
        stats: Its scores after, compared with those before; None as with `difference`.
        figure: The comparison over its rows; None where it has none.
        part: Rows that were kept, where the value is that of more rows; else 0.
        without_call: Whether some rows' right answer calls no tool, and is judged by `no_call.RULE`.
    """

    name: str
    before: FigureText
    after: FigureText
    difference: FigureText | None = None
    stats: ModelStats | None = None
    figure: ComparedFigure | None = None
    part: int = 0
    without_call: bool = False

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `not significant`, or empty."""
        return self.stats.verdict if self.stats else ""

    @property
    def moved(self) -> str:
        """Rows that got better, got worse and stayed as they were."""
        return f"{self.stats.wins:,} / {self.stats.losses:,} / {self.stats.ties:,}" if self.stats else ""


def changes(before: Evaluation, after: Evaluation) -> list[Change]:
    """Every figure of both, in their order.

    Args:
        before: The evaluation before training, perhaps empty.
        after: The evaluation after training.
    """
    figures = _with_rows(before, after)
    names = dict.fromkeys([*before.figures, *after.figures])
    rules = {name for each in (before, after) for name, rows in each.rows.items() if any(map(_without_call, rows))}
    made = (_change(name, before.figures.get(name), after.figures.get(name), figures.get(name)) for name in names)
    return [replace(change, without_call=change.name in rules) for change in made]


def _without_call(row: ScoredRow) -> bool:
    return bool(row.get(WITHOUT_CALL))


def headline(head: Mapping[str, Any]) -> list[Change]:
    """A result's `headline` alone, where no evaluation has its figure; nothing where it has no value."""
    if "name" not in head or (head.get(BEFORE) is None and head.get(AFTER) is None):
        return []
    before, after = (FigureText(as_text(head["name"], head.get(when))) for when in (BEFORE, AFTER))
    return [Change(head["name"], before, after)]


def moved_line(change: Change) -> str | None:
    """`test_exact_match: 12 rows became right, 3 became wrong`; None where rows don't say that."""
    if change.stats is None or change.figure is None or change.figure.lower_is_better:
        return None
    better, worse = ("became right", "became wrong") if change.figure.binary else ("got better", "got worse")
    wins, losses, ties = change.stats.wins, change.stats.losses, change.stats.ties
    return f"{change.name}: {wins:,} of {wins + losses + ties:,} rows {better}, {losses:,} {worse}"


def _with_rows(before: Evaluation, after: Evaluation) -> dict[str, ComparedFigure]:
    """The figures whose rows can be counted, by name; with both models where the rows are the same."""
    old = {name: rows for name, rows in before.rows.items() if _countable(rows)}
    new = {name: rows for name, rows in after.rows.items() if _countable(rows)}
    paired = [name for name, rows in new.items() if name in old and _tokens(old[name]) == _tokens(rows)]
    found = {name: _alone(name, AFTER, rows) for name, rows in new.items() if name not in paired}
    found |= {name: _alone(name, BEFORE, rows) for name, rows in old.items() if name not in new}
    if paired:
        both = [
            replace(results_of(name, evaluation), scores={f: rows[f] for f in paired})
            for name, evaluation, rows in ((BEFORE, before, old), (AFTER, after, new))
        ]
        found |= {figure.name: figure for figure in compare_models(both).figures}
    return found


def _countable(rows: Sequence[ScoredRow]) -> bool:
    """Whether each row has an id of its own and a number as its score; an evaluator of the user's may lack them."""
    scores = [row.get("score") for row in rows]
    numbers = all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
    return bool(rows) and numbers and len({row.get("id") for row in rows}) == len(rows)


def _tokens(rows: Sequence[ScoredRow]) -> dict[str, float]:
    return {row["id"]: row.get("weight", 1) for row in rows}


def _alone(name: str, when: str, rows: Sequence[ScoredRow]) -> ComparedFigure:
    """A figure that was measured once, or on other rows the second time."""
    scores, weights = [row["score"] for row in rows], [row.get("weight", 1) for row in rows]
    lower = lower_is_better(name)
    binary = not lower and is_binary(scores)
    stats = ModelStats(when, interval(scores, weights, LEVEL, binary))
    return ComparedFigure(name, lower, binary, len(rows), [stats], [])


def _change(name: str, before: float | None, after: float | None, figure: ComparedFigure | None) -> Change:
    if figure is None:
        return Change(name, FigureText(as_text(name, before)), FigureText(as_text(name, after)))
    model_stats = {stats.model: stats for stats in figure.model_stats}
    old, new = (_said(figure, model_stats.get(w), v) for w, v in ((BEFORE, before), (AFTER, after)))
    last = figure.model_stats[-1]
    value = before if last.model == BEFORE else after
    part = 0 if value is None or _is_mean(value, last.mean) else figure.count
    if last.test is None:
        return Change(name, old, new, figure=figure, part=part)
    words, apart = Wording(figure), last.test.difference
    difference = FigureText(words.difference(apart), interval_text(words, apart, "+"))
    return Change(name, old, new, difference, last, figure, part)


def _said(figure: ComparedFigure, stats: ModelStats | None, value: float | None) -> FigureText:
    if stats is None or value is None:
        return FigureText(as_text(figure.name, value))
    said = as_text(figure.name, value)
    if figure.binary and not said.endswith("%"):  # a figure of the user's, whose name doesn't say what it is
        said = f"{value:.1%}"
    return FigureText(said, interval_text(Wording(figure), stats.mean))


def _is_mean(value: float, of_rows: Interval) -> bool:
    return of_rows.mean is not None and math.isclose(value, of_rows.mean, rel_tol=1e-4, abs_tol=1e-6)


def interval_text(words: Numbers, at: Interval, sign: str = "") -> str:
    """`89.2–96.2`; where a sign could be taken for a dash, `−1.5 to +4.0`."""
    if at.low is None or at.high is None:
        return ""
    if sign or at.low < 0:
        return words.span(at, sign)
    return f"{words.value(at.low)}–{words.value(at.high)}"
