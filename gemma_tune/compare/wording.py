"""Figures, intervals and verdicts as text, the same in HTML, Markdown and the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gemma_tune.chat.calls import shown
from gemma_tune.compare.comparison import ComparedFigure, Comparison, DifferingRow, ModelStats
from gemma_tune.compare.seeds import SeedGroup, SeedSpread
from gemma_tune.evals.evaluation import as_text, is_share
from gemma_tune.evals.statistics import Interval
from gemma_tune.page.blocks import Cell, FigureText

_METHODS = (
    "Each model is compared with {baseline}, row by row. Right and wrong answers: Wilson’s interval of the share, "
    "McNemar’s exact test, and Bonett and Price’s interval of the difference. Other scores: Student’s t interval of "
    "the mean and the paired t-test, weighted by tokens where rows have them. p is two-sided; where there is more than "
    "one test, Holm’s correction keeps the chance of any false verdict at {alpha}; a figure that is a part of another "
    "one is not tested again. No significant difference does not mean equal: the interval says how large it may be."
)
_BEST = (
    " The best model was chosen by the rows that it is tested on: its own mean is rather too good, and so that no "
    "verdict is too easy, the correction counts the tests between all pairs of models."
)
SPREAD = "Mean ± sample standard deviation (n − 1) over the seeds, and the lowest and highest run; no interval."


def percent(share: float) -> str:
    """A share without needless digits: 95%, 99.9%."""
    return f"{100 * share:.10g}%"


def methods(comparison: Comparison) -> str:
    """How it was computed."""
    baseline = "the best one" if comparison.best_in else "the first one"
    said = _METHODS.format(alpha=percent(1 - comparison.level), baseline=baseline)
    return said + _BEST if comparison.best_in else said


def baseline_note(comparison: Comparison) -> str:
    """Why the baseline is the best model, in parentheses; empty where it is the first one named."""
    if comparison.best_in is None:
        return ""
    figure = next(f for f in comparison.figures if f.name == comparison.best_in)
    return f" (the best in {figure.name}, where {'lower' if figure.lower_is_better else 'higher'} is better)"


def spread_cell(spread: SeedSpread | None, share: bool) -> FigureText:
    """`93.5% ± 0.7`, and the lowest and highest run; a dash where there is none."""
    if spread is None:
        return FigureText()
    mean, low, high = (f"{v:.1%}" if share else f"{v:,.4g}" for v in (spread.mean, spread.low, spread.high))
    if spread.deviation is None:
        return FigureText(mean)
    deviation = f"{100 * spread.deviation:.1f}" if share else f"{spread.deviation:.2g}"
    return FigureText(f"{mean} ± {deviation}", f"{low.removesuffix('%')}–{high}")


def seed_table(groups: Sequence[SeedGroup], figures: Mapping[str, bool]) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows of the table of settings: how many seeds, and each figure over them.

    Args:
        groups: The runs by their settings.
        figures: The names of the figures, each with whether it is a share.
    """
    head = ["setting", "seeds", *figures]
    rows: list[list[Cell]] = []
    for group in groups:
        cells = [spread_cell(group.figures.get(name), share) for name, share in figures.items()]
        rows.append([group.setting or "all", str(len(group.runs)), *cells])
    return head, rows


def head(comparison: Comparison) -> list[str]:
    """Names of the columns of the table, from the model on."""
    interval = f"({percent(comparison.level)} interval)"
    tests = sum(s.test is not None for f in comparison.figures if not f.part_of for s in f.model_stats)
    p = "p, corrected" if tests > 1 else "p"
    return ["model", f"mean {interval}", f"difference {interval}", "verdict", p, "rows better / worse / same"]


def p_text(p_value: float) -> str:
    """A p value of two digits."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"


class Numbers:
    """Values of a figure as text: shares in percent, differences in points, with the digits that intervals allow.

    Args:
        share: Whether values are percentages.
        intervals: Those of all its values and differences.
    """

    def __init__(self, share: bool, intervals: Iterable[Interval]) -> None:
        self.share = share
        self._decimals = 1 if share else _decimals(intervals)

    def value(self, value: float | None, sign: str = "") -> str:
        """A value without its unit; `sign` as in a format."""
        if value is None:
            return "–"
        number = 100 * value if self.share else value
        text = f"{number:{sign},.{self._decimals}f}" if number else "0"
        return text.replace("-", "−") if text.strip("+-0.,") else text.lstrip("+-")

    def mean(self, interval: Interval) -> str:
        """The mean, with its unit."""
        return self.value(interval.mean) + ("%" if self.share else "")

    def span(self, interval: Interval, sign: str = "") -> str:
        """The interval; a dash where there is none."""
        if interval.low is None or interval.high is None:
            return "–"
        return f"{self.value(interval.low, sign)} to {self.value(interval.high, sign)}"

    def difference(self, interval: Interval) -> str:
        """A difference with its sign and its unit."""
        return self.value(interval.mean, "+") + (" points" if self.share else "")

    def tick(self, value: float, decimals: int) -> str:
        """A label of an axis, with `decimals` of the value (of a share: two fewer of its percentage)."""
        number = f"{100 * value:.{max(decimals - 2, 0)}f}" if self.share else f"{value:,.{decimals}f}"
        return (number if number.strip("-0.") else number.lstrip("-")).replace("-", "−")

    def text(self, value: str, interval: Interval, sign: str = "") -> str:
        """A value as text, and its interval in brackets where there is one."""
        return FigureText(value, "" if interval.low is None else self.span(interval, sign)).line()


class Wording(Numbers):
    """One figure of all models as text.

    Args:
        figure: The figure.
    """

    def __init__(self, figure: ComparedFigure) -> None:
        self.figure = figure
        stats = figure.model_stats
        intervals = [*(s.mean for s in stats), *(s.test.difference for s in stats if s.test)]
        super().__init__(is_share(figure.name, figure.binary), intervals)

    def score(self, score: float) -> str:
        """A row's score."""
        if self.figure.binary:
            return "right" if score else "wrong"
        return as_text(self.figure.name, score).replace("-", "−")

    def cells(self, stats: ModelStats) -> list[Cell]:
        """The cells of a model's row in the table, from the mean on; `head` names the columns."""
        mean = FigureText(self.mean(stats.mean), self.span(stats.mean))
        if stats.test is None:
            return [mean, "", "", "", ""]
        d = stats.test.difference
        rows = f"{stats.wins:,} / {stats.losses:,} / {stats.ties:,}"
        p = "–" if self.figure.part_of else p_text(stats.p_corrected)
        return [mean, FigureText(self.difference(d), self.span(d, "+")), stats.verdict, p, rows]

    def sentence(self, stats: ModelStats, level: float) -> str:
        """A model compared with the first one, in a sentence."""
        first, test = self.figure.model_stats[0], stats.test
        if test is None:
            return ""
        begin = {
            "not significant": f"No significant difference between {stats.model} and {first.model}",
            "not tested": f"{stats.model} and {first.model} are not tested",
        }.get(stats.verdict, f"{stats.model} is {stats.verdict} than {first.model}")
        apart = f"{percent(level)} interval {self.span(test.difference, '+')}"
        values = (
            f"{self.mean(stats.mean)} compared with {self.mean(first.mean)}, a difference of "
            f"{self.difference(test.difference)}"
        )
        if self.figure.part_of:
            return f"{begin}, because the rows are a part of {self.figure.part_of}: {values} ({apart})."
        p = f"p {p_text(test.p_value)}" if test.p_value < 0.001 else f"p = {p_text(test.p_value)}"
        if p_text(stats.p_corrected) != p_text(test.p_value):
            p += f", corrected {p_text(stats.p_corrected)}"
        return f"{begin}: {values} ({apart}; {test.method}: {p})."


def facts(figure: ComparedFigure) -> str:
    """How many rows, and which way is better."""
    rows = f"{figure.count:,} rows" if figure.count > 1 else "1 row"
    part = f"; a part of {figure.part_of}" if figure.part_of else ""
    return f"{rows}; {'lower' if figure.lower_is_better else 'higher'} is better{part}"


def groups(figure: ComparedFigure, most: int) -> Iterator[tuple[str, str, list[DifferingRow]]]:
    """The groups of differing rows: title, how many of how many, and the first of them; `most` in all."""
    found = figure.groups()
    for title, rows in found:
        part = rows[: max(most // len(found), 1)]
        some = f"the first {len(part):,} of {len(rows):,}" if len(part) < len(rows) else f"{len(rows):,}"
        yield title, some, part


def shown_text(text: Any) -> str | None:
    """A reference answer or an answer as people read it, calls as `name(…)`; None where there is none."""
    return None if text is None else shown(str(text))


def number_text(value: float | None) -> str:
    """A figure without rows."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _decimals(intervals: Iterable[Interval]) -> int:
    """As many decimals as give the narrowest interval two digits."""
    widths = [i.high - i.low for i in intervals if i.low is not None and i.high is not None and i.high > i.low]
    return min(max(1 - math.floor(math.log10(min(widths) / 2)), 0), 9) if widths else 4
