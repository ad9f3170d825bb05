"""Sections of blocks as a page: one HTML file that needs no network and no scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import singledispatch
from itertools import groupby
from pathlib import Path

from gemma_tune.page.blocks import (
    Block,
    Cell,
    Charts,
    Code,
    Curves,
    FigureText,
    Folded,
    Heading,
    Headline,
    Listing,
    Mono,
    Samples,
    Section,
    Strong,
    Table,
    Text,
    Tiles,
    TokenRows,
)
from gemma_tune.page.charts import curve_chart
from gemma_tune.page.samples import sample
from gemma_tune.page.text import escaped
from gemma_tune.page.token_rows import token_row

# The page loads nothing and runs nothing, whatever the texts on it hold
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
_LEGEND = (
    "<mark>the loss counts it: trained</mark>",
    '<span class="quiet">the model reads it: not trained</span>',
    '<span class="special">&lt;bos&gt;</span> special token',
    "⏎ line break, ⇥ tab",
    '<span class="quiet">tooltips show token ids</span>',
)


def html(title: str, mark: str, sections: Sequence[Section]) -> Iterator[str]:
    """The lines of the page.

    Args:
        title: Its title and its heading.
        mark: A line for the head that tells our pages from other files.
        sections: Its content; those without a title are shown in the header.
    """
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield mark
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escaped(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<header>"
    yield f"<h1>{escaped(title)}</h1>"
    yield from (line for section in sections if not section.title for line in _blocks(section.blocks))
    yield "</header>\n<main>"
    for width, group in groupby((s for s in sections if s.title), key=lambda section: section.width):
        yield from ['<div class="beside">'] if width == "half" else []
        for section in group:
            anchor = f' id="{section.anchor}"' if section.anchor else ""
            yield f"<section{anchor}>\n<h2>{escaped(section.title)}</h2>"
            yield from _blocks(section.blocks)
            yield "</section>"
        yield from ["</div>"] if width == "half" else []
    yield "</main>\n</body>\n</html>"


def _blocks(blocks: Iterable[Block]) -> Iterator[str]:
    return (line for block in blocks for line in _lines(block))


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _inline(part: str) -> str:
    """A text, perhaps in bold or monospace."""
    tag = {Mono: "code", Strong: "b"}.get(type(part)) if part else None
    return f"<{tag}>{escaped(part)}</{tag}>" if tag else escaped(part)


def _cell(cell: Cell) -> str:
    if isinstance(cell, FigureText):
        return f"<td>{escaped(cell.value)}{f'<small>{escaped(cell.span)}</small>' if cell.span else ''}</td>"
    text = _inline(cell)
    if not isinstance(cell, Mono):
        text = text.replace("_", "_<wbr>")  # names of figures are long on a phone
    return f"<td{_class(cell if cell in ('better', 'worse') else '')}>{text}</td>"


def _rows(rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
    yield from (f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)


@singledispatch
def _lines(block: Block) -> Iterator[str]:
    raise NotImplementedError(type(block).__name__)


@_lines.register
def _(block: Text) -> Iterator[str]:
    parts = [block.text] if isinstance(block.text, str) else block.text
    yield f"<p{_class(block.kind)}>{''.join(map(_inline, parts))}</p>"


@_lines.register
def _(block: Heading) -> Iterator[str]:
    yield f"<h3>{escaped(block.text)}{f' <small>({escaped(block.note)})</small>' * bool(block.note)}</h3>"


@_lines.register
def _(block: Headline) -> Iterator[str]:
    values = ' <span class="quiet">→</span> '.join(
        f"<span>{escaped(text.value)}{f'<small>({escaped(text.span)})</small>' if text.span else ''}</span>"
        for text in block.values
    )
    kind = block.verdict if block.verdict in ("better", "worse") else ""
    note = f'<p class="{kind}">{escaped(block.note)}</p>' if block.note else ""
    yield f'<div class="headline"><p class="quiet">{escaped(block.name)}</p><p class="values">{values}</p>{note}</div>'


@_lines.register
def _(block: Listing) -> Iterator[str]:
    tag = "ol" if block.numbered else "ul"
    yield f"<{tag}{_class(block.kind)}>{''.join(f'<li>{_inline(item)}</li>' for item in block.items)}</{tag}>"


@_lines.register
def _(block: Code) -> Iterator[str]:
    yield f'<pre class="code">{escaped(block.text)}</pre>'


@_lines.register
def _(block: Table) -> Iterator[str]:
    yield f'<div class="scroll"><table{_class("texts" * block.texts)}>'
    if any(block.head):
        yield f"<thead><tr>{''.join(f'<th>{escaped(name)}</th>' for name in block.head)}</tr></thead>"
    yield from _rows(block.rows)
    for group in block.groups:
        title = f'<a href="#{group.anchor}">{escaped(group.title)}</a> <small>{escaped(group.note)}</small>'
        yield f'<tbody><tr><th colspan="{len(block.head)}">{title}</th></tr>'
        yield from _rows(group.rows)
        yield "</tbody>"
    yield "</table></div>"


@_lines.register
def _(block: Samples) -> Iterator[str]:
    for number, row in enumerate(block.rows, start=1):
        yield sample(number, row, number <= block.open)


@_lines.register
def _(block: Curves) -> Iterator[str]:
    yield '<div class="curves">'
    yield from (curve_chart(panel) for panel in block.panels)
    yield "</div>"


@_lines.register
def _(block: Charts) -> Iterator[str]:
    yield f'<div class="charts{" wide scroll" * block.wide}">'
    for title, chart in block.charts.items():
        yield f"<figure>{f'<figcaption>{escaped(title)}</figcaption>' if title else ''}{chart}</figure>"
    yield "</div>"


@_lines.register
def _(block: Tiles) -> Iterator[str]:
    yield '<dl class="tiles">'
    for name, value, note, warn, share in block.tiles:
        bar = "" if share is None else f'<div class="share"><span style="width:{share:.1%}"></span></div>'
        text = f"<dt>{escaped(name)}</dt><dd>{escaped(value)}<small>{escaped(note)}</small></dd>"
        yield f"<div{_class('warn' * warn)}>{text}{bar}</div>"
    yield "</dl>"


@_lines.register
def _(block: Folded) -> Iterator[str]:
    yield f'<details class="list"><summary>{escaped(block.title)}</summary>'
    yield from _blocks(block.blocks)
    yield "</details>"


@_lines.register
def _(block: TokenRows) -> Iterator[str]:
    yield f'<ul class="legend">{"".join(f"<li>{item}</li>" for item in _LEGEND)}</ul>'
    for number, row in enumerate(block.rows, start=1):
        yield token_row(number, row, number <= block.open)
