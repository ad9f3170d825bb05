"""The histogram of row lengths, as SVG."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.page.svg import LETTER, Axis, svg, text, vertical


@dataclass(frozen=True)
class Histogram:
    """Rows by their length.

    Attributes:
        width: Tokens from one bar to the next.
        rows: Rows of each bar; bar i holds the lengths from i · width on.
        longer: Rows longer than the last bar reaches.
    """

    width: int
    rows: list[int]
    longer: int

    @property
    def end(self) -> int:
        """Where the last bar ends, in tokens."""
        return self.width * len(self.rows)


_H_WIDE, _H_PLOT, _H_LEFT, _H_TOP = 720, 180, 62, 10
_H_BEYOND = 84  # the axis behind its break: lengths far beyond the bars, in order
_LINE_HEIGHT = 17
_LIMIT = "train.max_length"


def length_chart(counted: Histogram, marks: dict[str, int], max_length: int) -> str:
    """The histogram of row lengths, with a vertical line at each mark and at `train.max_length`.

    Args:
        counted: The histogram.
        marks: Lengths by their names: the median, for example.
        max_length: Where rows are cut; bars beyond it have the class `beyond`.
    """
    lines = sorted([*marks.items(), (_LIMIT, max_length)], key=lambda mark: mark[1])
    inner = _H_WIDE - _H_LEFT - 12
    far = [float(length) for length in sorted({length for _, length in lines if length > counted.end})]
    slot = (inner - _H_BEYOND * bool(far or counted.longer)) / len(counted.rows)
    end = _H_LEFT + slot * len(counted.rows)
    tokens, rows = (
        Axis([0, most], parts, whole=True)
        for most, parts in ((counted.end, 8), (max(*counted.rows, counted.longer), 4))
    )

    def x(length: float) -> float:
        if length in far:
            return end + (far.index(length) + 1) / (len(far) + 1) * _H_BEYOND
        return _H_LEFT + length / counted.width * slot

    names = [f"{name} {length:,}" for name, length in lines]
    labels = _labels(names, [x(length) for _, length in lines])
    ceiling = _H_TOP + _LINE_HEIGHT * (1 + max(row for *_, row in labels))
    floor = ceiling + _H_PLOT

    def bar(left: float, count: int, title: str, beyond: bool) -> str:
        height, gap = rows.place(count) / 100 * _H_PLOT, min(1.5, slot / 4)
        return (
            f'<rect class="bar{" beyond" * beyond}" x="{left + gap / 2:.1f}" y="{floor - height:.1f}" '
            f'width="{slot - gap:.1f}" height="{height:.1f}"><title>{title}</title></rect>'
        )

    parts = []
    for tick in rows.ticks:
        y = floor - rows.place(tick) / 100 * _H_PLOT
        parts.append(f'<path class="grid" d="M{_H_LEFT} {y:.1f}H{_H_LEFT + inner}"/>')
        parts.append(text(_H_LEFT - 6, y + 4, rows.name(tick), anchor="end"))
    parts += [text(x(tick), floor + 17, tokens.name(tick)) for tick in tokens.ticks]
    for place, count in enumerate(counted.rows):
        first, last = place * counted.width, (place + 1) * counted.width - 1
        span = f"{first:,}–{last:,}" if last > first else f"{first:,}"
        parts.append(bar(x(first), count, f"{span} tokens, rows: {count:,}", first >= max_length))
    if counted.longer:
        title = f"{counted.end:,} tokens and more, rows: {counted.longer:,}"
        parts.append(bar(end + _H_BEYOND / 2 - slot / 2, counted.longer, title, counted.end >= max_length))
        parts.append(text(end + _H_BEYOND / 2, floor + 17, "longer"))
    elif far:  # of the marks only: the limit, as the longest row is within the bars
        parts.append(text(x(far[-1]), floor + 17, f"{far[-1]:,.0f}"))
    if end < _H_LEFT + inner:
        parts.append(f'<path class="break" d="M{end + 5:.1f} {floor + 5}l6 -10m4 0l-6 10"/>')
    above = []  # labels after all lines, so that no line crosses one
    for (name, length), (label, middle, row) in zip(lines, labels, strict=True):
        height = ceiling - 6 - row * _LINE_HEIGHT
        kind = "mark limit" if name == _LIMIT else "mark"
        parts.append(vertical(x(length), height + 4, floor, kind))
        above.append(text(middle, height, label, kind))
    parts.append(text(_H_LEFT + inner / 2, floor + 36, "tokens of a row"))
    turned = f"translate(12 {ceiling + _H_PLOT / 2}) rotate(-90)"
    parts.append(f'<text class="tick" transform="{turned}" text-anchor="middle">rows</text>')
    summary = ", ".join(f"{name} {length:,}" for name, length in lines)
    return svg(_H_WIDE, floor + 44, f"Histogram of row lengths in tokens: {summary}", [*parts, *above])


def _labels(texts: list[str], places: list[float]) -> list[tuple[str, float, int]]:
    """Each label with its middle and its row, counted from the chart upwards, so that no label covers another."""
    reaches: list[float] = []  # where each row of labels ends
    found = []
    for label, place in zip(texts, places, strict=True):
        half = len(label) * (LETTER + label.startswith(_LIMIT)) / 2  # that one is bold
        middle = min(max(place, half + 2), _H_WIDE - half - 2)
        row = next((i for i, end in enumerate(reaches) if middle - half > end + 8), len(reaches))
        reaches[row : row + 1] = [middle + half]
        found.append((label, middle, row))
    return found
