"""loss.png: the values over the steps, for places that show no HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_tune.report.curves import Panel

_COLUMNS = 3
_STYLES: dict[str, dict[str, Any]] = {
    "faint": {"color": "#9db8d2", "linewidth": 1},
    "line": {"color": "#1f5a99", "linewidth": 1.8},
    "dots": {"color": "#c4532d", "linewidth": 1.2, "marker": "o", "markersize": 3.5, "linestyle": "--"},
}


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Draws the first panel wide and the others below it, three in a row.

    Args:
        panels: One or more.
        file: Where the PNG is written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    below = -(-(len(panels) - 1) // _COLUMNS)
    figure = Figure(figsize=(9, 3.6 + 2 * below), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + below, _COLUMNS, height_ratios=[1.8, *[1] * below])
    for place, panel in enumerate(panels):
        row, column = divmod(place - 1, _COLUMNS)
        axes = figure.add_subplot(grid[row + 1, column] if place else grid[0, :])
        for series in panel.series:
            axes.plot(*zip(*series.points, strict=True), label=series.name, **_STYLES[series.kind])
        axes.set_title(f"{panel.title}{' (%)' if panel.unit else ''}", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel.series) > 1:
            axes.legend(frameon=False, fontsize=8)
        if not place:
            axes.set_xlabel("optimizer step", fontsize=8)
    figure.savefig(file)
