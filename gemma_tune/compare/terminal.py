"""The comparison in the terminal: its notes, and a table of each figure."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma_tune.compare.comparison import ComparedFigure, Comparison
from gemma_tune.compare.wording import Wording, facts, head
from gemma_tune.page.text import VISIBLE

_WIDE = 1000  # columns of a terminal that holds every table


def show(comparison: Comparison, console: Console) -> None:
    """Prints what is to be known, and the figures; the rows stand in the files.

    Args:
        comparison: The comparison.
        console: Where to; a value and its interval stand below each other where it is narrow.
    """
    for note in comparison.notes:
        console.print(f"note: {note.translate(VISIBLE)}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for figure in comparison.figures:
        table = _table(figure, comparison, " ")
        wide = console.measure(table, options=console.options.update_width(_WIDE)).maximum
        console.print(table if wide <= console.width else _table(figure, comparison, "\n"))


def _table(figure: ComparedFigure, comparison: Comparison, between: str) -> Table:
    title = Text(f"{figure.name} ({facts(figure)})".translate(VISIBLE))
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    first, *others = (name.replace(" (", f"{between}(").replace(" / ", f"{between}/ ") for name in head(comparison))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    for row in _rows(figure, between):
        table.add_row(*(Text(cell.translate(VISIBLE)) for cell in row))
    return table


def _rows(figure: ComparedFigure, between: str) -> Iterator[list[str]]:
    wording = Wording(figure)
    for stats in figure.model_stats:
        cells = wording.cells(stats)
        yield [stats.model, *(f"{said}{between}({span})" if span else said for said, span in cells)]
