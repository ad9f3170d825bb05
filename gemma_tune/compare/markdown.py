"""The comparison as Markdown text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from gemma_tune.compare.comparison import ComparedFigure, Comparison, DifferingRow
from gemma_tune.compare.wording import Wording, answers, facts, groups, head, methods, plain, wanted
from gemma_tune.page.text import VISIBLE

_ROWS = 20  # of a figure, over all its groups
_MOST = 1000  # characters of a text


def markdown(comparison: Comparison) -> str:
    """The whole comparison: the table, what it says, and the rows where the models differ."""
    return "\n".join(_lines(comparison))


def _lines(comparison: Comparison) -> Iterator[str]:
    first, *others = comparison.models
    yield f"# {len(comparison.models)} models on the same rows\n"
    yield f"Held against **{_plain(first)}**: {', '.join(_plain(name) for name in others)}.\n"
    yield from (f"- {_plain(note)}" for note in comparison.notes)
    yield from [""] * bool(comparison.notes)
    yield "## Figures\n"
    yield from _table(["figure", *head(comparison)], _standings(comparison))
    for figure in comparison.figures:
        yield from _figure(figure, comparison.level)
    if comparison.others:
        yield "## Figures without rows of their own\n"
        rows = [[name, *map(plain, values)] for name, values in comparison.others.items()]
        yield from _table(["", *comparison.models], rows)
    yield f"## How it was computed\n\n{methods(comparison)}\n"


def _standings(comparison: Comparison) -> Iterator[list[str]]:
    for figure in comparison.figures:
        wording = Wording(figure)
        for place, stats in enumerate(figure.model_stats):
            name = "" if place else f"{figure.name} ({facts(figure)})"
            cells = wording.cells(stats)
            yield [name, stats.model, *(f"{said} ({span})" if span else said for said, span in cells)]


def _figure(figure: ComparedFigure, level: float) -> Iterator[str]:
    wording = Wording(figure)
    yield f"## {_plain(figure.name)}\n"
    yield from (f"- {_plain(wording.sentence(stats, level))}" for stats in figure.model_stats[1:])
    yield f"- They differ on {len(figure.rows):,} of {figure.count:,} rows.\n"
    for title, some, rows in groups(figure, _ROWS):
        yield f"### {_plain(title)} ({some})\n"
        for number, row in enumerate(rows, start=1):
            yield from _row(number, row, figure, wording)


def _row(number: int, row: DifferingRow, figure: ComparedFigure, wording: Wording) -> Iterator[str]:
    yield f"**{number:,}.** row {_plain(row.id)}\n"
    for name, text in (("asked", row.text("prompt")), ("wanted", wanted(row))):
        if text is not None:
            yield from (f"{name}:\n", _fenced(text), "")
    for stats, score, answer in zip(figure.model_stats, row.scores, answers(row), strict=True):
        yield f"{_plain(stats.model)}: {wording.score(score)}\n"
        if answer is not None:
            yield from (_fenced(answer), "")


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(map(_plain, names)) + " |"
    yield "|" + " --- |" * len(names)
    yield from ("| " + " | ".join(map(_plain, row)) + " |" for row in rows)
    yield ""


def _plain(text: str) -> str:
    """A text in one line in which nothing is markup."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split())).translate(VISIBLE)


def _fenced(text: str) -> str:
    """A text as a block of code, with a fence that it doesn't hold."""
    if len(text) > _MOST:
        text = f"{text[:_MOST]}\n[… {len(text) - _MOST:,} characters more]"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.translate(VISIBLE)}\n{fence}"
