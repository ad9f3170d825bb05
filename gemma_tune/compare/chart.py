"""Means and differences as dots with their intervals, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from gemma_tune.evals.statistics import Interval
from gemma_tune.page.text import escaped

# The drawing's measures, in its own units
_WIDE, _SIDE, _TOP = 400, 12, 6
_ROW, _TEXT, _LINE = 46, 14, 30  # a row's height; in it, where its text stands, and its interval
_AXIS = 44
_LETTER = 7.3  # about the width of a letter


@dataclass(frozen=True)
class Dot:
    """A line of the drawing.

    Attributes:
        name: The model.
        interval: Where its dot and its whiskers stand.
        said: The same in words.
        kind: A CSS class: `better`, `worse`, or empty.
    """

    name: str
    interval: Interval
    said: str
    kind: str = ""


def interval_chart(
    dots: Sequence[Dot], title: str, caption: str, tick: Callable[[float, int], str], around_zero: bool
) -> str:
    """An `<svg>` with a line a model: its name, its interval in words, and both as a drawing.

    Args:
        dots: The lines, from above.
        title: What it shows, for those who can't see it.
        caption: Below the axis.
        tick: A label of the axis from its value and the decimals that tell it from its neighbours.
        around_zero: Whether 0 is on the axis, with a line of its own.
    """
    ends = [e for d in dots for e in (d.interval.low, d.interval.mean, d.interval.high) if e is not None]
    low, high = min([*ends, 0.0] if around_zero else ends), max([*ends, 0.0] if around_zero else ends)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    ticks = [float(t) for t in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)]
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    decimals = max(0, -math.floor(math.log10((ticks[1] - ticks[0]) * (1 + 1e-9))))
    floor = _TOP + _ROW * len(dots)

    def x(value: float) -> float:
        return 2 * _SIDE + (value - low) / (high - low) * (_WIDE - 4 * _SIDE)

    parts = []
    for value in ticks:
        kind = "zero" if around_zero and abs(value) < 1e-9 * (high - low) else "grid"
        parts.append(f'<line class="{kind}" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{_TOP}" y2="{floor}"/>')
        label = tick(value, decimals)
        parts.append(f'<text x="{x(value):.1f}" y="{floor + 15}" text-anchor="middle">{escaped(label)}</text>')
    parts.append(f'<text x="{_WIDE / 2}" y="{floor + 34}" text-anchor="middle">{escaped(caption)}</text>')
    for place, dot in enumerate(dots):
        parts += _row(dot, _TOP + place * _ROW, x)
    said = "; ".join(f"{d.name} {d.said}" for d in dots)
    return (
        f'<svg viewBox="0 0 {_WIDE} {floor + _AXIS}" role="img" aria-label="{escaped(f"{title}: {said}")}">'
        f"{''.join(parts)}</svg>"
    )


def _row(dot: Dot, top: int, x: Callable[[float], float]) -> list[str]:
    """One model's text, whiskers and dot."""
    text, line = top + _TEXT, top + _LINE
    room = int((_WIDE - 2 * _SIDE) / _LETTER) - len(dot.said) - 2
    # Of a long name the end is kept: paths differ there
    name = dot.name if len(dot.name) <= room else f"…{dot.name[1 - room :]}"
    parts = [
        f'<text class="name" x="{_SIDE}" y="{text}"><title>{escaped(dot.name)}</title>{escaped(name)}</text>'
        f'<text class="name" x="{_WIDE - _SIDE}" y="{text}" text-anchor="end">{escaped(dot.said)}</text>'
    ]
    at = dot.interval
    drawn = []
    if at.low is not None and at.high is not None:
        left, right = x(at.low), x(at.high)
        drawn.append(f'<path d="M{left:.1f} {line - 5}v10m0-5H{right:.1f}m0-5v10"/>')
    if at.mean is not None:
        drawn.append(f'<circle cx="{x(at.mean):.1f}" cy="{line}" r="5"/>')
    return [*parts, f'<g class="dot {dot.kind}"><title>{escaped(f"{dot.name} {dot.said}")}</title>{"".join(drawn)}</g>']
