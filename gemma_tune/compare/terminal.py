"""The comparison in the terminal: its notes, and a table for each figure."""

from __future__ import annotations

from rich.console import Console

from gemma_tune.compare.comparison import Comparison
from gemma_tune.compare.wording import Wording, facts, head
from gemma_tune.page.terminal import print_figures
from gemma_tune.page.text import VISIBLE


def show(comparison: Comparison, console: Console) -> None:
    """Prints notes and figures; the rows are in the files."""
    for note in comparison.notes:
        console.print(f"note: {note.translate(VISIBLE)}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for figure in comparison.figures:
        wording = Wording(figure)
        rows = [[stats.model, *wording.cells(stats)] for stats in figure.model_stats]
        print_figures(console, f"{figure.name} ({facts(figure)})", head(comparison), rows)
