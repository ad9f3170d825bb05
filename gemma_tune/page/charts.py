"""Charts: curves and intervals as SVG for pages, and curves as a PNG file for Markdown.

Each chart that is an `<svg>` has measures in its own units and scales with the page. Curves are stretched to the width
of the page, so their labels are HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gemma_tune.evals.statistics import Interval
from gemma_tune.page.svg import LETTER, Axis, svg, text, vertical
from gemma_tune.page.text import escaped

_MARKED = 40  # points up to which each one of a series gets a dot
CURVE = 3  # points that make a curve; fewer are dots, since a line between two says nothing of what lies between


# Curves


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: Its name.
        points: Step and value, [N].
        kind: `faint` (each step), `line` (their mean), or `dots` (evaluations).
    """

    name: str
    points: list[tuple[float, float]]
    kind: str


@dataclass(frozen=True)
class Panel:
    """One chart of curves.

    Attributes:
        title: What it shows.
        series: Its lines.
        unit: `%`, or empty.
    """

    title: str
    series: list[Series]
    unit: str = ""


def curve_chart(panel: Panel) -> str:
    """A `<figure>` of one panel: axes, a line for each series, and a legend where there are several."""
    points = [point for series in panel.series for point in series.points]
    x = Axis([step for step, _ in points], 5, whole=True)
    y = Axis([value for _, value in points], 4)
    ticks = "".join(
        f'<span class="y" style="bottom:{y.place(t):.2f}%">{escaped(y.name(t))}{panel.unit}</span>' for t in y.ticks
    )
    ticks += "".join(f'<span class="x" style="left:{x.place(t):.2f}%">{escaped(x.name(t))}</span>' for t in x.ticks)
    grid = "".join(f'<path class="grid" d="M0 {100 - y.place(t):.2f}H100"/>' for t in y.ticks)
    lines = "".join(_curve(series, x, y) for series in panel.series)
    names = [f'<li class="{series.kind}">{escaped(series.name)}</li>' for series in panel.series]
    legend = f'<ul class="names">{"".join(names)}</ul>' if len(names) > 1 else ""
    first, last = panel.series[-1].points[0], panel.series[-1].points[-1]
    label = f"{panel.title}: " + ", ".join(f"{v:.4g}{panel.unit} at step {step:,.0f}" for step, v in (first, last))
    return (
        f"<figure><figcaption>{escaped(panel.title)} <small>{last[1]:.4g}{panel.unit}</small></figcaption>{legend}"
        f'<div class="plot" role="img" aria-label="{escaped(label)}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{grid}{lines}</svg>{ticks}</div></figure>'
    )


def _curve(series: Series, x: Axis, y: Axis) -> str:
    places = [(x.place(step), 100 - y.place(value)) for step, value in series.points]
    path = "M" + "L".join(f"{left:.2f} {top:.2f}" for left, top in places)
    drawn = f'<path class="{series.kind}" d="{path}"/>' if len(places) >= CURVE else ""
    if len(places) <= (_MARKED if series.kind == "dots" else CURVE - 1):
        for (left, top), (step, value) in zip(places, series.points, strict=True):
            # A line of length 0 with round ends is a dot, however the chart is stretched
            title = f"<title>step {step:,.0f}: {value:.4g}</title>"
            drawn += f'<path class="dot" d="M{left:.2f} {top:.2f}h0">{title}</path>'
    return drawn


_COLUMNS = 3
_STYLES: dict[str, dict[str, Any]] = {
    "faint": {"color": "#9db8d2", "linewidth": 1},
    "line": {"color": "#1f5a99", "linewidth": 1.8},
    "dots": {"color": "#c4532d", "linewidth": 1.2, "marker": "o", "markersize": 3.5, "linestyle": "--"},
}
_DOTS_ALONE = {"linestyle": "none", "marker": "o", "markersize": 3.5}


def draw_curves(panels: Sequence[Panel], file: Path) -> None:
    """Writes a PNG file: the first panel over the whole width, the others below it, three in a row.

    Args:
        panels: One or more.
        file: The PNG file.
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
            style = _STYLES[series.kind] | (_DOTS_ALONE if len(series.points) < CURVE else {})
            axes.plot(*zip(*series.points, strict=True), label=series.name, **style)
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


# Intervals


class Dot(NamedTuple):
    """A line of an interval chart.

    Attributes:
        name: The model.
        interval: Its mean and its interval.
        text: The same as text.
        kind: `better`, `worse`, or empty.
    """

    name: str
    interval: Interval
    text: str
    kind: str = ""


_WIDE, _SIDE, _TOP = 400, 12, 6
_ROW, _NAME, _LINE = 46, 14, 30  # the height of a row; in it, the places of its text and of its interval
_SECOND = 16  # the height of a second line, where a name leaves no room for the values beside it


def interval_chart(
    dots: Sequence[Dot], title: str, caption: str, tick: Callable[[float, int], str], around_zero: bool
) -> str:
    """Dots with whiskers, one row for each model, below its name and its values as text.

    Args:
        dots: The rows, from the top.
        title: What it shows, for screen readers.
        caption: A text below the axis.
        tick: Makes a label of the axis from a value and the decimals that distinguish it from the next one.
        around_zero: Whether 0 is on the axis, with a line of its own.
    """
    intervals = [dot.interval for dot in dots]
    ends = [end for i in intervals for end in (i.low, i.mean, i.high) if end is not None]
    axis = Axis([*ends, 0.0] if around_zero else ends, 5)
    letters = int((_WIDE - 2 * _SIDE) / LETTER)
    second = _SECOND * any(len(dot.name) + len(dot.text) + 2 > letters for dot in dots)
    floor = _TOP + (_ROW + second) * len(dots)

    def x(value: float) -> float:
        return 2 * _SIDE + axis.place(value) / 100 * (_WIDE - 4 * _SIDE)

    parts = []
    for value in axis.ticks:
        is_zero = around_zero and abs(axis.place(value) - axis.place(0)) < 1e-7
        parts.append(vertical(x(value), _TOP, floor, "zero" if is_zero else "grid"))
        parts.append(text(x(value), floor + 15, tick(value, axis.decimals)))
    parts.append(text(_WIDE / 2, floor + 34, caption))
    for row, dot in enumerate(dots):
        top = _TOP + row * (_ROW + second)
        base, line = top + _NAME, top + second + _LINE
        room = letters if second else letters - len(dot.text) - 2
        # The end of a long name is kept: paths differ there
        name = dot.name if len(dot.name) <= room else f"…{dot.name[1 - room :]}"
        parts.append(text(_SIDE, base, name, "name", "start"))
        parts.append(text(_WIDE - _SIDE, base + second, dot.text, "name", "end"))
        low, mean, high = dot.interval.low, dot.interval.mean, dot.interval.high
        drawn = ""
        if low is not None and high is not None:
            drawn += f'<path d="M{x(low):.1f} {line - 5}v10m0-5H{x(high):.1f}m0-5v10"/>'
        if mean is not None:
            drawn += f'<circle cx="{x(mean):.1f}" cy="{line}" r="5"/>'
        parts.append(f'<g class="dot {dot.kind}"><title>{escaped(f"{dot.name} {dot.text}")}</title>{drawn}</g>')
    label = f"{title}: {'; '.join(f'{dot.name} {dot.text}' for dot in dots)}"
    return svg(_WIDE, floor + 44, label, parts)
