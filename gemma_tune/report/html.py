"""A report as a page: one HTML file that needs no network and no scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import singledispatch
from pathlib import Path

from gemma_tune.page.text import document, escaped
from gemma_tune.report.answers import marks
from gemma_tune.report.blocks import (
    Block,
    Cell,
    Code,
    Curves,
    Dots,
    Headline,
    Listing,
    Mono,
    SampleAnswer,
    SampleAnswers,
    SampleRow,
    Section,
    Table,
    Text,
)
from gemma_tune.report.figures import FigureText
from gemma_tune.report.plot import plot

PAGE_MARK = '<meta name="generator" content="gemma_tune report">'

_MOST = 20_000  # characters of a text at most: a browser must draw all rows
_ASKED = 160  # characters of what was asked in a folded row


def html(title: str, sections: Sequence[Section]) -> Iterator[str]:
    """The lines of the page."""
    yield from document(title, PAGE_MARK, Path(__file__).parent / "page.css", _body(sections))


def _body(sections: Sequence[Section]) -> Iterator[str]:
    headless = [s for s in sections if not s.title]
    yield from (line for section in headless for block in section.blocks for line in _lines(block))
    yield "</header>\n<main>"
    for section in sections:
        if section.title:
            yield f"<section>\n<h2>{escaped(section.title)}</h2>"
            yield from (line for block in section.blocks for line in _lines(block))
            yield "</section>"
    yield "</main>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _cell(cell: Cell) -> str:
    if isinstance(cell, FigureText):
        return escaped(cell.value) + (f"<small>{escaped(cell.span)}</small>" if cell.span else "")
    if isinstance(cell, Mono) and cell:
        return f"<code>{escaped(cell)}</code>"
    return escaped(cell).replace("_", "_<wbr>")  # names of figures are long on a phone


@singledispatch
def _lines(block: Block) -> Iterator[str]:
    raise NotImplementedError(type(block).__name__)


@_lines.register
def _(block: Text) -> Iterator[str]:
    yield f"<p{_class(block.kind)}>{escaped(block.text)}</p>"


@_lines.register
def _(block: Headline) -> Iterator[str]:
    values = ' <span class="quiet">→</span> '.join(
        f"<span>{escaped(said.value)}{f'<small>({escaped(said.span)})</small>' if said.span else ''}</span>"
        for said in block.values
    )
    kind = block.verdict if block.verdict in ("better", "worse") else ""
    note = f'<p class="{kind}">{escaped(block.note)}</p>' if block.note else ""
    yield f'<div class="headline"><p class="quiet">{escaped(block.name)}</p><p class="values">{values}</p>{note}</div>'


@_lines.register
def _(block: Listing) -> Iterator[str]:
    yield f"<ul{_class(block.kind)}>{''.join(f'<li>{escaped(item)}</li>' for item in block.items)}</ul>"


@_lines.register
def _(block: Code) -> Iterator[str]:
    yield f'<pre class="code">{escaped(block.text)}</pre>'


@_lines.register
def _(block: Table) -> Iterator[str]:
    yield f'<div class="scroll"><table{_class("texts" * block.texts)}>'
    if any(block.head):
        yield f"<thead><tr>{''.join(f'<th>{escaped(name)}</th>' for name in block.head)}</tr></thead>"
    for place, row in enumerate(block.rows):
        kind = block.kinds[place] if block.kinds else ""
        yield f"<tr{_class(kind)}>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>"
    yield "</table></div>"


@_lines.register
def _(block: SampleAnswers) -> Iterator[str]:
    for number, row in enumerate(block.rows, start=1):
        yield _asked(number, row, number <= block.open)


@_lines.register
def _(block: Curves) -> Iterator[str]:
    yield '<div class="curves">'
    yield from (plot(panel) for panel in block.panels)
    yield "</div>"


@_lines.register
def _(block: Dots) -> Iterator[str]:
    yield '<div class="charts">'
    for title, chart in block.charts.items():
        yield f"<figure><figcaption>{escaped(title)}</figcaption>{chart}</figure>"
    yield "</div>"


def _asked(number: int, row: SampleRow, unfolded: bool) -> str:
    """A row that unfolds: what was asked and wanted, and each answer."""
    asked = escaped(" ".join(row.prompt[-2 * _ASKED :].split())[-_ASKED:])
    signs = "".join(
        f'<span class="sign {_kind(side)}" title="{escaped(side.name)}: {escaped(side.mark)}">{escaped(sign)}</span>'
        for side, sign in zip(row.sides, marks(row.sides), strict=True)
        if sign
    )
    above = [("asked", "", row.prompt), *([("wanted", "", row.wanted)] if row.wanted is not None else [])]
    sides = [(_side(side), _kind(side), side.text) for side in row.sides]
    parts = "".join(_part(*part) for part in (*above, *sides))
    return (
        f'<details class="row"{" open" if unfolded else ""}><summary><b>{number:,}</b>'
        f'<span class="ask" dir="auto">{asked}</span>{signs}</summary><div class="answers">{parts}</div></details>'
    )


def _kind(side: SampleAnswer) -> str:
    return side.mark if side.mark in ("right", "wrong") else ""


def _side(side: SampleAnswer) -> str:
    return ", ".join(filter(None, [side.name, side.mark, "cut off" if side.cut_off else ""]))


def _part(title: str, kind: str, text: str | None) -> str:
    if text is None:
        said = '<p class="quiet">not kept</p>'
    elif not text.strip():
        said = '<p class="quiet">empty</p>'
    else:
        more = f"\n[… {len(text) - _MOST:,} characters more]" if len(text) > _MOST else ""
        # A line break that begins a <pre> is dropped, hence one more
        said = f'<pre dir="auto">\n{escaped(text[:_MOST])}{more}</pre>'
    return f'<div class="answer {kind}"><b>{escaped(title)}</b>{said}</div>'
