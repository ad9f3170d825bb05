"""Tables of figures in the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma_tune.page.blocks import Cell, FigureText
from gemma_tune.page.text import VISIBLE

_WIDE = 1000  # columns of a terminal that holds every table
_NAME = 30  # columns of a name that is one word
_BETWEEN = 3  # columns between two of a table


def print_figures(
    console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], whole: bool = False
) -> None:
    """Prints a table of values and their intervals.

    Args:
        console: Where to print; where it is narrow, intervals stand below their values, and lines end at the ends of
            words; where it is narrower still, names are broken after `=` and `.`.
        title: The title of the table.
        head: Names of the columns.
        rows: Its cells; the first column is text.
        whole: Whether no word and no number is broken, however narrow the console is; see `fitting`.
    """
    options = console.options.update_width(_WIDE)
    table = _table(title, head, rows, " ", whole)
    if console.measure(table, options=options).maximum > console.width:
        table = _table(title, head, rows, "\n", whole)
        if not whole:
            ways = ("", r"(?<==)", r"(?<==)|(?<=[a-z_]\.)")  # after what names may be broken
            broken = [[[_broken(name, way), *others] for name, *others in rows] for way in ways]
            by_words = [_table(title, head, cells, "\n", words=True) for cells in broken]
            table = next((one for one in by_words if _fit(one, console)), table)
    console.print(table)


def _fit(table: Table, console: Console) -> bool:
    """Gives each column its `min_width` and a share of the rest, if there is room: rich itself would go below it."""
    widths = [column.min_width or 1 for column in table.columns]
    rest = console.width - sum(widths) - _BETWEEN * len(widths)
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width + max(rest, 0) // len(widths)
    return rest >= 0


def _broken(name: Cell, way: str) -> Cell:
    """A name with line breaks where the regular expression matches; an empty one matches nothing."""
    return name if isinstance(name, FigureText) or not way else re.sub(way, "\n", name)


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


def _table(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    between: str,
    whole: bool = False,
    words: bool = False,
) -> Table:
    table = Table(title=Text(title.translate(VISIBLE)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    names = [name.replace(" (", f"{between}(").replace(" / ", f"{between}/ ") for name in head]
    texts = [
        [Text((c.line(between) if isinstance(c, FigureText) else c).translate(VISIBLE)) for c in row] for row in rows
    ]
    for place, name in enumerate(names):
        column = [row[place].plain for row in texts]
        pieces = [piece for text in column for piece in (text.split("\n") if place and whole else text.split())]
        least = max(map(len, [*pieces, *name.split()]), default=1) if whole or words else None
        table.add_column(
            name,
            overflow="fold",
            justify="right" if place else "left",
            min_width=min(least, _NAME) if least and not place else least,
        )
    for row in texts:
        table.add_row(*row)
    return table
