"""Values over the steps: as HTML that is as wide as its place, with letters that stay as large as they are."""

from __future__ import annotations

import math
from html import escape

from matplotlib.ticker import MaxNLocator

from gemma_tune.report.curves import Panel, Series

_DOTS = 40  # points up to which each one is marked


class Axis:
    """One direction of a drawing: which values it holds, and which it names.

    Args:
        values: What must have a place.
        parts: Labels at most, about.
        whole: Whether only whole numbers are named, and nothing is left beside the outermost values.
    """

    def __init__(self, values: list[float], parts: int, whole: bool = False) -> None:
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            room = 1.0 if whole else (abs(low) or 1) / 10
            low, high = low - room, high + room
        margin = 0.0 if whole else (high - low) / 25
        self._low, self._high = low - margin, high + margin
        found = MaxNLocator(parts, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)
        self.ticks = [float(t) for t in found if self._low <= t <= self._high]
        self._decimals = max(0, -math.floor(math.log10(found[1] - found[0]) + 1e-9))

    def place(self, value: float) -> float:
        """Where a value stands, in percent from the low end."""
        return 100 * (value - self._low) / (self._high - self._low)

    def name(self, value: float) -> str:
        """A label; numbers as small as learning rates with their power of ten."""
        if self._decimals > 4 and abs(value) > 1e-12:
            return f"{value:.3g}".replace("-", "−")
        return f"{value:,.{self._decimals}f}".replace("-", "−") if abs(value) > 1e-12 else "0"


def plot(panel: Panel) -> str:
    """A `<figure>` of one panel: axes, a line a series, and a legend where there are several."""
    points = [point for series in panel.series for point in series.points]
    x = Axis([step for step, _ in points], 5, whole=True)
    y = Axis([value for _, value in points], 4)
    ticks = "".join(
        f'<span class="y" style="bottom:{y.place(t):.2f}%">{escape(y.name(t))}{panel.unit}</span>' for t in y.ticks
    )
    ticks += "".join(f'<span class="x" style="left:{x.place(t):.2f}%">{escape(x.name(t))}</span>' for t in x.ticks)
    grid = "".join(f'<path class="grid" d="M0 {100 - y.place(t):.2f}H100"/>' for t in y.ticks)
    lines = "".join(_line(series, x, y) for series in panel.series)
    names = [f'<li class="{series.kind}">{escape(series.name)}</li>' for series in panel.series]
    legend = f'<ul class="names">{"".join(names)}</ul>' if len(names) > 1 else ""
    first, last = panel.series[-1].points[0], panel.series[-1].points[-1]
    said = f"{panel.title}: " + ", ".join(f"{v:.4g}{panel.unit} at step {step:,.0f}" for step, v in (first, last))
    return (
        f"<figure><figcaption>{escape(panel.title)} <small>{last[1]:.4g}{panel.unit}</small></figcaption>{legend}"
        f'<div class="plot" role="img" aria-label="{escape(said)}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{grid}{lines}</svg>{ticks}</div></figure>'
    )


def _line(series: Series, x: Axis, y: Axis) -> str:
    places = [(x.place(step), 100 - y.place(value)) for step, value in series.points]
    path = "M" + "L".join(f"{left:.2f} {top:.2f}" for left, top in places)
    drawn = f'<path class="{series.kind}" d="{path}"/>' if len(places) > 1 else ""
    if len(places) <= (_DOTS if series.kind == "dots" else 1):
        for (left, top), (step, value) in zip(places, series.points, strict=True):
            # A line of no length with round ends is a dot, however the drawing is stretched
            drawn += (
                f'<path class="dot" d="M{left:.2f} {top:.2f}h0"><title>step {step:,.0f}: {value:.4g}</title></path>'
            )
    return drawn
