"""The histogram of row lengths as SVG."""

from __future__ import annotations

from gemma_tune.preview.figures import Histogram, nice_step

# The drawing's measures, in its own units
_WIDE, _PLOT = 720, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 10, 44
_LINE_HEIGHT = 17
_LETTER = 7.2  # about the width of a letter of a label


def length_chart(counted: Histogram, marks: dict[str, int], max_length: int) -> str:
    """An `<svg>` with axes, bars that say their figures, and a line at each mark and at `train.max_length`.

    Args:
        counted: The histogram.
        marks: What stands at which length: the median, for example.
        max_length: Where rows are cut; bars beyond it have the class `beyond`.
    """
    lines = sorted([*marks.items(), ("train.max_length", max_length)], key=lambda mark: mark[1])
    inner = _WIDE - _LEFT - _RIGHT
    slot = inner / (len(counted.rows) + 2 * bool(counted.longer))  # the longer ones stand apart, behind a gap

    def x(tokens: float) -> float:
        return _LEFT + min(tokens, counted.end) / counted.width * slot

    texts = [f"{name} {tokens:,}{' →' if tokens > counted.end else ''}" for name, tokens in lines]
    labels = _labels(texts, [x(tokens) for _, tokens in lines])
    ceiling = _TOP + _LINE_HEIGHT * (1 + max(row for *_, row in labels))
    floor = ceiling + _PLOT
    highest = max(*counted.rows, counted.longer)
    step = nice_step(highest, 4)
    top = -(-highest // step) * step

    def y(rows: float) -> float:
        return floor - rows / top * _PLOT

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{y(n):.1f}" y2="{y(n):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y(n) + 4:.1f}" text-anchor="end">{n:,}</text>'
        for n in range(0, top + 1, step)
    ]
    ticks = nice_step(counted.end, 8)
    parts += [
        f'<text class="tick" x="{x(n):.1f}" y="{floor + 17}" text-anchor="middle">{n:,}</text>'
        for n in range(0, counted.end + 1, ticks)
    ]
    for place, rows in enumerate(counted.rows):
        first = place * counted.width
        last = first + counted.width - 1
        span = f"{first:,}–{last:,}" if last > first else f"{first:,}"
        parts.append(_bar(x(first), y(rows), slot, floor, f"{span} tokens, rows: {rows:,}", first >= max_length))
    if counted.longer:
        title = f"{counted.end:,} tokens and more, rows: {counted.longer:,}"
        parts.append(_bar(x(counted.end) + slot, y(counted.longer), slot, floor, title, counted.end >= max_length))
        parts.append(
            f'<text class="tick" x="{x(counted.end) + 1.5 * slot:.1f}" y="{floor + 17}" text-anchor="end">longer</text>'
        )
    said = []  # after all lines, so that none crosses a label
    for (name, tokens), (label, middle, row) in zip(lines, labels, strict=True):
        height = ceiling - 6 - row * _LINE_HEIGHT
        kind = "mark limit" if name == "train.max_length" else "mark"
        parts.append(f'<line class="{kind}" x1="{x(tokens):.1f}" x2="{x(tokens):.1f}" y1="{height + 4}" y2="{floor}"/>')
        said.append(f'<text class="{kind}" x="{middle:.1f}" y="{height}" text-anchor="middle">{label}</text>')
    parts.append(
        f'<text class="tick" x="{_LEFT + inner / 2}" y="{floor + 36}" text-anchor="middle">tokens of a row</text>'
    )
    turned = f"translate(12 {ceiling + _PLOT / 2}) rotate(-90)"
    parts.append(f'<text class="tick" transform="{turned}" text-anchor="middle">rows</text>')
    summary = ", ".join(f"{name} {tokens:,}" for name, tokens in lines)
    return (
        f'<svg viewBox="0 0 {_WIDE} {floor + _BOTTOM}" role="img" '
        f'aria-label="Histogram of row lengths in tokens: {summary}">{"".join([*parts, *said])}</svg>'
    )


def _labels(texts: list[str], places: list[float]) -> list[tuple[str, float, int]]:
    """Each label with its middle and its row, from the plot upwards, so that none covers another."""
    reaches: list[float] = []  # where each row of labels ends
    found = []
    for text, place in zip(texts, places, strict=True):
        half = len(text) * _LETTER / 2
        middle = min(max(place, half + 2), _WIDE - half - 2)
        row = next((i for i, end in enumerate(reaches) if middle - half > end + 8), len(reaches))
        reaches[row : row + 1] = [middle + half]
        found.append((text, middle, row))
    return found


def _bar(left: float, top: float, slot: float, floor: float, title: str, beyond: bool) -> str:
    gap = min(1.5, slot / 4)
    return (
        f'<rect class="bar{" beyond" * beyond}" x="{left + gap / 2:.1f}" y="{top:.1f}" width="{slot - gap:.1f}" '
        f'height="{floor - top:.1f}"><title>{title}</title></rect>'
    )
