"""Tables of figures in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma_tune.page.blocks import Cell, FigureText
from gemma_tune.page.text import VISIBLE

_WIDE = 1000  # columns of a terminal that holds every table


def print_figures(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Prints a table of values and their intervals.

    Args:
        console: Where to print; where it is narrow, intervals stand below their values.
        title: The title of the table.
        head: Names of the columns.
        rows: Its cells; the first column is text.
    """
    table = _table(title, head, rows, " ")
    wide = console.measure(table, options=console.options.update_width(_WIDE)).maximum
    console.print(table if wide <= console.width else _table(title, head, rows, "\n"))


def fits(console: Console, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> bool:
    """Whether `print_figures` has room for the table without breaking a word or a number."""
    table = _table("", head, rows, "\n")
    return console.measure(table, options=console.options.update_width(_WIDE)).minimum <= console.width


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], between: str) -> Table:
    table = Table(title=Text(title.translate(VISIBLE)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    first, *others = (name.replace(" (", f"{between}(").replace(" / ", f"{between}/ ") for name in head)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        cells = (cell.line(between) if isinstance(cell, FigureText) else cell for cell in row)
        table.add_row(*(Text(cell.translate(VISIBLE)) for cell in cells))
    return table
