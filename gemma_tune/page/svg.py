"""The parts of charts: axes, and the elements of SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from gemma_tune.page.text import escaped

LETTER = 7.3  # about the width of a letter, in units of a chart


class Axis:
    """One direction of a chart: its range and its ticks.

    Args:
        values: The values that must lie within its range.
        parts: Ticks at most, about.
        whole: Whether ticks are whole numbers, and the range ends at the outermost values.
    """

    def __init__(self, values: Sequence[float], parts: int, whole: bool = False) -> None:
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            room = 1.0 if whole else (abs(low) or 1) / 10
            low, high = low - room, high + room
        margin = 0.0 if whole else (high - low) / 25
        self._low, self._high = low - margin, high + margin
        found = MaxNLocator(parts, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)
        self.ticks = [float(t) for t in found if self._low <= t <= self._high]
        self.decimals = max(0, -math.floor(math.log10(found[1] - found[0]) + 1e-9))

    def place(self, value: float) -> float:
        """Where a value lies, in percent from the low end."""
        return 100 * (value - self._low) / (self._high - self._low)

    def name(self, value: float) -> str:
        """A label; numbers as small as learning rates get a power of ten."""
        if self.decimals > 4 and abs(value) > 1e-12:
            return f"{value:.3g}".replace("-", "−")
        return f"{value:,.{self.decimals}f}".replace("-", "−") if abs(value) > 1e-12 else "0"


def text(x: float, y: float, words: str, kind: str = "tick", anchor: str = "middle") -> str:
    """A text at a place; `anchor` as in SVG: `start`, `middle` or `end`."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped(words)}</text>'


def vertical(x: float, top: float, bottom: float, kind: str) -> str:
    """A vertical line."""
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'


def svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """The whole chart; `label` says it for screen readers."""
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(label)}">{"".join(parts)}</svg>'
