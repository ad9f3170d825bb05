"""Tables of figures in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma_tune.page.blocks import Cell, FigureText
from gemma_tune.page.text import VISIBLE

_WIDE = 1000  # columns of a terminal that holds every table
_NAME = 30  # columns of a name that is one word


def print_figures(
    console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], whole: bool = False
) -> None:
    """Prints a table of values and their intervals.

    Args:
        console: Where to print; where it is narrow, intervals stand below their values.
        title: The title of the table.
        head: Names of the columns.
        rows: Its cells; the first column is text.
        whole: Whether no word and no number is broken, however narrow the console is; see `fitting`.
    """
    table = _table(title, head, rows, " ", whole)
    wide = console.measure(table, options=console.options.update_width(_WIDE)).maximum
    console.print(table if wide <= console.width else _table(title, head, rows, "\n", whole))


def fitting(
    console: Console, names: Sequence[str], rows: Callable[[Sequence[str]], Sequence[Sequence[Cell]]]
) -> Sequence[str]:
    """As many of the first names as the console has room for, so that no word and no number is broken; at least one.

    Args:
        console: Where to print.
        names: Names of columns behind others.
        rows: The cells of the whole table with these columns.
    """
    for count in range(len(names), 1, -1):
        cells = rows(names[:count])
        others = max(map(len, cells), default=0) - count
        table = _table("", [*[""] * others, *names[:count]], cells, "\n", whole=True)
        if console.measure(table, options=console.options.update_width(_WIDE)).minimum <= console.width:
            return names[:count]
    return names[:1]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], between: str, whole: bool = False) -> Table:
    table = Table(title=Text(title.translate(VISIBLE)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    names = [name.replace(" (", f"{between}(").replace(" / ", f"{between}/ ") for name in head]
    texts = [
        [Text((c.line(between) if isinstance(c, FigureText) else c).translate(VISIBLE)) for c in row] for row in rows
    ]
    for place, name in enumerate(names):
        column = [row[place].plain for row in texts]
        pieces = [piece for text in column for piece in (text.split("\n") if place else text.split())]
        least = max(map(len, [*pieces, *name.split()]), default=1) if whole else None
        table.add_column(
            name,
            overflow="fold",
            justify="right" if place else "left",
            min_width=min(least, _NAME) if least and not place else least,
        )
    for row in texts:
        table.add_row(*row)
    return table
