"""The comparison as comparison.html and comparison.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_tune.compare.comparison import ComparedFigure, Comparison, DifferingRow
from gemma_tune.compare.wording import (
    SPREAD,
    Wording,
    baseline_note,
    facts,
    groups,
    head,
    methods,
    number_text,
    percent,
    seed_table,
    shown_text,
)
from gemma_tune.evals.evaluation import is_share
from gemma_tune.page.blocks import (
    Block,
    Cell,
    Charts,
    Folded,
    Heading,
    Listing,
    RowGroup,
    SampleAnswer,
    SampleRow,
    Samples,
    Section,
    Strong,
    Table,
    Text,
)
from gemma_tune.page.charts import Dot, interval_chart
from gemma_tune.page.html import html
from gemma_tune.page.markdown import markdown
from gemma_tune.page.media import Gallery

PAGE_MARK = '<meta name="generator" content="gemma_tune compare">'

_HTML_ROWS, _MARKDOWN_ROWS = 200, 20  # of a figure, over all its groups
_OPEN = 2  # rows of a group that are unfolded from the start


def write_comparison(comparison: Comparison, markdown_file: Path, more: Sequence[Section] = ()) -> None:
    """Writes the Markdown file, and beside it the page as an .html file; `more` stands at their end."""
    title = f"{len(comparison.models)} models on the same rows"
    for file, lines in (
        (markdown_file, markdown(title, [*sections(comparison, _MARKDOWN_ROWS, Gallery(0)), *more])),
        (
            markdown_file.with_suffix(".html"),
            html(title, PAGE_MARK, [*sections(comparison, _HTML_ROWS, Gallery()), *more]),
        ),
    ):
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def sections(comparison: Comparison, most_rows: int, gallery: Gallery) -> list[Section]:
    """All figures in a table, then each figure with the rows where the models differ.

    Args:
        comparison: The comparison.
        most_rows: Rows of a figure that are shown, over all its groups.
        gallery: What shows the media of the rows.
    """
    first, *others = comparison.models
    names = [part for name in others for part in (", ", Strong(name))][1:]
    groups = [
        RowGroup(figure.name, facts(figure), f"figure-{number}", _table_rows(figure))
        for number, figure in enumerate(comparison.figures)
    ]
    table: list[Block] = [Table(head(comparison), groups=groups)]
    if comparison.others:
        rows = [[name, *map(number_text, values)] for name, values in comparison.others.items()]
        table.append(Folded("Figures without rows of their own", [Table(["", *comparison.models], rows)]))
    because = f"{baseline_note(comparison)}. Compared with it: "
    notes = [Listing(comparison.notes, "notes")] if comparison.notes else []
    return [
        Section("", [Text(["Baseline: ", Strong(first), because, *names, "."], "quiet"), *notes]),
        Section("Figures", table),
        *([Section("Seeds", _seeds(comparison))] if comparison.seeds else []),
        *(
            Section(figure.name, _figure(figure, comparison.level, most_rows, gallery), f"figure-{number}")
            for number, figure in enumerate(comparison.figures)
        ),
        Section("How it was computed", [Text(methods(comparison), "quiet")]),
    ]


def _seeds(comparison: Comparison) -> list[Block]:
    figures = {f.name: is_share(f.name, f.binary) for f in comparison.figures}
    return [Table(*seed_table(comparison.seeds, figures)), Text(SPREAD, "quiet")]


def _table_rows(figure: ComparedFigure) -> list[list[Cell]]:
    wording = Wording(figure)
    return [[stats.model, *wording.cells(stats)] for stats in figure.model_stats]


def _figure(figure: ComparedFigure, level: float, most_rows: int, gallery: Gallery) -> list[Block]:
    wording = Wording(figure)
    blocks: list[Block] = [
        Text(wording.sentence(stats, level), f"verdict {_kind(stats.verdict)}".strip())
        for stats in figure.model_stats[1:]
    ]
    blocks.append(_charts(figure, wording, level))
    if figure.rows:
        blocks.append(Text(f"They differ on {len(figure.rows):,} of {figure.count:,} rows."))
    else:
        blocks.append(Text(f"All models have the same score on each of the {figure.count:,} rows.", "quiet"))
    for title, some, rows in groups(figure, most_rows):
        samples = [_row(row, figure, wording, gallery) for row in rows]
        blocks += [Heading(title, some), Samples(samples, _OPEN, full=True)]
    return blocks


def _charts(figure: ComparedFigure, wording: Wording, level: float) -> Charts:
    """The mean of each model, and the difference of each from the baseline."""
    unit, points = ("%", ", in points") if wording.share else ("", "")
    first = figure.model_stats[0].model
    means = [Dot(s.model, s.mean, wording.text(wording.mean(s.mean), s.mean)) for s in figure.model_stats]
    tests = [(s, s.test.difference) for s in figure.model_stats if s.test]
    apart = [Dot(s.model, d, wording.text(wording.value(d.mean, "+"), d, "+"), _kind(s.verdict)) for s, d in tests]
    better = "← better" if figure.lower_is_better else "better →"

    def tick(value: float, decimals: int) -> str:
        return wording.tick(value, decimals) + unit

    return Charts(
        {
            f"Means with {percent(level)} intervals": interval_chart(means, figure.name, better, tick, False),
            f"Differences from {first}{points}": interval_chart(
                apart, f"{figure.name}, differences from {first}", better, wording.tick, around_zero=True
            ),
        }
    )


def _kind(verdict: str) -> str:
    return verdict if verdict in ("better", "worse") else ""


def _row(row: DifferingRow, figure: ComparedFigure, wording: Wording, gallery: Gallery) -> SampleRow:
    answers = [
        SampleAnswer(stats.model, shown_text(own.get("answer")), wording.score(score), own.get("stopped") is False)
        for stats, score, own in zip(figure.model_stats, row.scores, row.rows, strict=True)
    ]
    tokens = f", {row.weight:,.0f} tokens" if row.weight != 1 else ""
    media = gallery.media(row.media)
    return SampleRow(row.text("prompt"), shown_text(row.text("wanted")), answers, (row.id, tokens), media)
