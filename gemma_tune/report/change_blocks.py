"""The figures before and after as blocks: the headline, a table with differences, and charts of the intervals."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_tune.compare.wording import Wording
from gemma_tune.evals.no_call import RULE
from gemma_tune.page.blocks import Block, Cell, Charts, Headline, Table, Text
from gemma_tune.page.charts import Dot, interval_chart
from gemma_tune.report.figures import BEFORE, Change

_INTERVALS = (
    "Values have their 95% intervals over the rows: Wilson’s for right and wrong answers, Student’s t for other scores."
)
_DIFFERENCES = (
    "A difference pairs each row with itself; it is better or worse where the test (McNemar’s exact one, or the paired "
    "t-test) gives p < 0.05, with Holm’s correction over all figures. No significant difference does not mean equal."
)


def headline_block(change: Change) -> Headline:
    """The figure to look at first, with its difference."""
    count = change.figure.count if change.figure else 0
    rows = f"{count:,} rows" if count != 1 else "1 row"
    note = ""
    if change.difference:
        note = f"{change.difference.line()}: {change.verdict}, on {rows}"
    elif change.figure:
        note = f"on {rows}"
    values = [text for text in (change.before, change.after) if text.value != "–"]
    return Headline(change.name, values, note, change.verdict)


def change_blocks(figures: Sequence[Change], once: bool) -> list[Block]:
    """All figures.

    Args:
        figures: The figures.
        once: Whether they were measured once, so that there is nothing to compare.
    """
    if not figures:
        return []
    blocks: list[Block] = []
    if once:
        blocks.append(Table(["", "value"], [[c.name, c.after] for c in figures]))
    else:
        head = ["", "before", "after", "difference", "", "rows better / worse / same"]
        rows: list[list[Cell]] = [[c.name, c.before, c.after, c.difference or "", c.verdict, c.moved] for c in figures]
        if not any(c.stats for c in figures):
            head, rows = head[:3], [row[:3] for row in rows]
        blocks.append(Table(head, rows))
    if charts := {c.name: _chart(c) for c in figures if c.figure}:
        blocks += [Charts(charts), Text(_INTERVALS, "quiet")]
    if any(change.without_call for change in figures):
        blocks.append(Text(RULE, "quiet"))
    if any(change.stats for change in figures):
        blocks.append(Text(_DIFFERENCES, "quiet"))
    for change in figures:
        if change.part:
            text = f"{change.name} is that of all rows; its interval and its difference are those of the first "
            blocks.append(Text(f"{text}{change.part:,}, which were kept.", "quiet"))
    return blocks


def _chart(change: Change) -> str:
    """The values before and after, each with its interval."""
    figure = change.figure
    assert figure is not None  # the caller asks for those alone
    wording = Wording(figure)
    dots = []
    for stats in figure.model_stats:
        text = change.before if stats.model == BEFORE else change.after
        kind = change.verdict if stats.test and change.verdict in ("better", "worse") else ""
        dots.append(Dot(stats.model, stats.mean, text.line(), kind))
    unit = "%" if wording.share else ""
    caption = "← better" if figure.lower_is_better else "better →"
    return interval_chart(dots, change.name, caption, lambda v, n: wording.tick(v, n) + unit, around_zero=False)
