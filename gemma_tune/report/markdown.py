"""A report as Markdown, as GitHub and the Hugging Face Hub show it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import singledispatch

from gemma_tune.page.text import VISIBLE
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
    SampleAnswers,
    Section,
    Table,
    Text,
)
from gemma_tune.report.figures import FigureText

_MOST = 300  # characters of a text in a table


def markdown(title: str, sections: Sequence[Section]) -> Iterator[str]:
    """The lines of the report."""
    yield f"# {plain(title)}"
    for section in sections:
        if section.title:
            yield from ("", f"## {section.title}")
        for block in section.blocks:
            if lines := list(_lines(block)):
                yield from ("", *lines)
    yield ""


def plain(text: str) -> str:
    """A text in one line in which nothing is markup. An underscore within a word is none, so paths stay readable."""
    text = re.sub(r"([\\`*\[\]<>|~&$])|(?<!\w)(_)|(_)(?!\w)", r"\\\g<0>", text.replace("\r\n", "\n").strip())
    text = re.sub(r"^([#+-]|\d+[.)])(?=\s)", r"\\\1", text)
    return " ".join(text.replace("\n", "⏎").split()).translate(VISIBLE)


def _cell(cell: Cell) -> str:
    if isinstance(cell, FigureText):
        return plain(cell.line())
    if isinstance(cell, Mono) and cell and "`" not in cell:
        return f"`{' '.join(cell.split()).translate(VISIBLE)}`".replace("|", "\\|")
    return plain(cell)


def _table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    for cells in (map(plain, head), ["---"] * len(head), *(map(_cell, row) for row in rows)):
        yield f"| {' | '.join(cells)} |"


@singledispatch
def _lines(block: Block) -> Iterator[str]:
    raise NotImplementedError(type(block).__name__)


@_lines.register
def _(block: Text) -> Iterator[str]:
    yield plain(block.text)


@_lines.register
def _(block: Headline) -> Iterator[str]:
    yield f"**{plain(block.name)}: {' → '.join(plain(said.line()) for said in block.values)}**"
    if block.note:
        yield from ("", plain(block.note))


@_lines.register
def _(block: Listing) -> Iterator[str]:
    yield from (f"- {plain(item)}" for item in block.items)


@_lines.register
def _(block: Code) -> Iterator[str]:
    yield f"```{block.language}\n{block.text}\n```"


@_lines.register
def _(block: Table) -> Iterator[str]:
    yield from _table(block.head, block.rows)


@_lines.register
def _(block: SampleAnswers) -> Iterator[str]:
    names = dict.fromkeys(side.name for row in block.rows for side in row.sides)
    rows: list[list[str]] = []
    for row in block.rows:
        said = {
            side.name: f"{sign} {_beginning(side.text)}{' (cut off)' if side.cut_off else ''}"
            for side, sign in zip(row.sides, marks(row.sides), strict=True)
        }
        rows.append([row.prompt[-_MOST:], _beginning(row.wanted), *(said.get(name, "–") for name in names)])
    yield from _table(["prompt", "wanted", *names], rows)


@_lines.register
def _(block: Curves) -> Iterator[str]:
    yield f"![{plain(', '.join(panel.title for panel in block.panels))}, over the optimizer steps]({block.picture})"


@_lines.register
def _(block: Dots) -> Iterator[str]:
    yield from ()  # the table says it


def _beginning(text: str | None) -> str:
    if text is None:
        return "–"
    return f"{text[:_MOST]} …" if len(text) > _MOST else text
