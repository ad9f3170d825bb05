"""The comparison in the terminal: its notes, and a table for each figure."""

from __future__ import annotations

from rich.console import Console

from gemma_tune.compare.comparison import Comparison
from gemma_tune.compare.wording import SPREAD, Wording, baseline_note, facts, head, seed_table
from gemma_tune.evals.evaluation import is_share
from gemma_tune.page.terminal import fitting, print_figures
from gemma_tune.page.text import VISIBLE


def show(comparison: Comparison, console: Console) -> None:
    """Prints notes and figures; the rows are in the files."""
    for note in comparison.notes:
        console.print(f"note: {note.translate(VISIBLE)}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if note := baseline_note(comparison):
        console.print(f"Baseline: {comparison.models[0].translate(VISIBLE)}{note}.", markup=False, soft_wrap=True)
    for figure in comparison.figures:
        wording = Wording(figure)
        rows = [[stats.model, *wording.cells(stats)] for stats in figure.model_stats]
        print_figures(console, f"{figure.name} ({facts(figure)})", head(comparison), rows)
    if comparison.seeds:
        shares = {f.name: is_share(f.name, f.binary) for f in comparison.figures}
        kept = fitting(
            console, list(shares), lambda names: seed_table(comparison.seeds, {n: shares[n] for n in names})[1]
        )
        table_head, rows = seed_table(comparison.seeds, {name: shares[name] for name in kept})
        print_figures(console, "Seeds", table_head, rows, whole=True)
        console.print(SPREAD, style="dim")
