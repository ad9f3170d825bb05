"""Sections of blocks as Markdown, as GitHub and the Hugging Face Hub render it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import singledispatch

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
    SampleRow,
    Samples,
    Section,
    Strong,
    Table,
    Text,
)
from gemma_tune.page.text import VISIBLE

_CELL = 300  # characters of a text in a table
_FENCED = 1000  # characters of a text in a code block


def markdown(title: str, sections: Sequence[Section]) -> Iterator[str]:
    """The lines of the file."""
    yield f"# {escape_markdown(title)}"
    for section in sections:
        if section.title:
            yield from ("", f"## {escape_markdown(section.title)}")
        yield from _blocks(section.blocks)
    yield ""


def escape_markdown(text: str) -> str:
    """A text in one line without markup. Underscores within words need no escape, so paths stay readable."""
    text = re.sub(r"([\\`*\[\]<>|~&$])|(?<!\w)(_)|(_)(?!\w)", r"\\\g<0>", text.replace("\r\n", "\n").strip())
    text = re.sub(r"^([#+-]|\d+[.)])(?=\s)", r"\\\1", text)
    return " ".join(text.replace("\n", "⏎").split()).translate(VISIBLE)


def _blocks(blocks: Iterable[Block]) -> Iterator[str]:
    for block in blocks:
        if lines := list(_lines(block)):
            yield from ("", *lines)


def _cell(cell: Cell) -> str:
    if isinstance(cell, FigureText):
        return escape_markdown(cell.line())
    if isinstance(cell, Mono) and cell and "`" not in cell:
        return f"`{' '.join(cell.split()).translate(VISIBLE)}`".replace("|", "\\|")
    return f"**{escape_markdown(cell)}**" if isinstance(cell, Strong) and cell else escape_markdown(cell)


def _table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
    for cells in (map(escape_markdown, head), ["---"] * len(head), *(map(_cell, row) for row in rows)):
        yield f"| {' | '.join(cells)} |"


@singledispatch
def _lines(block: Block) -> Iterator[str]:
    raise NotImplementedError(type(block).__name__)


@_lines.register
def _(block: Text) -> Iterator[str]:
    if isinstance(block.text, str):
        yield escape_markdown(block.text)
    else:  # spaces at the ends of the parts stand between them
        parts = ((part, " " * part[:1].isspace(), " " * part[-1:].isspace()) for part in block.text)
        yield "".join(f"{before}{_cell(part)}{after}" for part, before, after in parts)


@_lines.register
def _(block: Heading) -> Iterator[str]:
    yield f"### {escape_markdown(block.text)}{f' ({escape_markdown(block.note)})' * bool(block.note)}"


@_lines.register
def _(block: Headline) -> Iterator[str]:
    yield f"**{escape_markdown(block.name)}: {' → '.join(escape_markdown(text.line()) for text in block.values)}**"
    if block.note:
        yield from ("", escape_markdown(block.note))


@_lines.register
def _(block: Listing) -> Iterator[str]:
    yield from (
        f"{f'{number}.' if block.numbered else '-'} {_cell(item)}" for number, item in enumerate(block.items, 1)
    )


@_lines.register
def _(block: Code) -> Iterator[str]:
    yield f"```{block.language}\n{block.text}\n```"


@_lines.register
def _(block: Table) -> Iterator[str]:
    if not block.groups:
        yield from _table(block.head, block.rows)
        return
    rows: list[list[Cell]] = []
    for group in block.groups:
        name = f"{group.title} ({group.note})"
        rows += [["" if place else name, *row] for place, row in enumerate(group.rows)]
    yield from _table(["figure", *block.head], rows)


@_lines.register
def _(block: Samples) -> Iterator[str]:
    if block.full:
        for number, row in enumerate(block.rows, start=1):
            yield from _full_sample(number, row)
        return
    names = dict.fromkeys(answer.name for row in block.rows for answer in row.answers)
    rows: list[list[str]] = []
    for row in block.rows:
        texts = {
            answer.name: f"{answer.sign} {_beginning(answer.text)}{' (cut off)' if answer.cut_off else ''}"
            for answer in row.answers
        }
        end = (row.prompt or "–")[-_CELL:]
        prompt = " ".join([*_unnamed(row, end), end])
        rows.append([prompt, _beginning(row.reference), *(texts.get(name, "–") for name in names)])
    yield from _table(["prompt", "reference", *names], rows)


def _unnamed(row: SampleRow, prompt: str) -> list[str]:
    """The media that this text doesn't name, as those of earlier messages."""
    return [name for medium in row.media if (name := f"[{medium.title}]") not in prompt]


def _full_sample(number: int, row: SampleRow) -> Iterator[str]:
    yield from (f"**{number:,}.** row {escape_markdown(row.id[0])}", "")
    if names := _unnamed(row, row.prompt or ""):
        yield from (f"media: {escape_markdown(' '.join(names))}", "")
    for name, text in (("prompt", row.prompt), ("reference", row.reference)):
        if text is not None:
            yield from (f"{name}:", "", _fenced(text), "")
    for answer in row.answers:
        yield from (f"{escape_markdown(answer.name)}: {answer.facts}", "")
        if answer.text is not None:
            yield from (_fenced(answer.text), "")


@_lines.register
def _(block: Curves) -> Iterator[str]:
    titles = escape_markdown(", ".join(panel.title for panel in block.panels))
    yield f"![{titles}, over the optimizer steps]({block.picture})"


@_lines.register
def _(block: Charts) -> Iterator[str]:
    yield from ()  # the table above gives the same numbers


@_lines.register
def _(block: Folded) -> Iterator[str]:
    yield f"### {escape_markdown(block.title)}"
    yield from _blocks(block.blocks)


def _beginning(text: str | None) -> str:
    if text is None:
        return "–"
    return f"{text[:_CELL]} …" if len(text) > _CELL else text


def _fenced(text: str) -> str:
    """A text as a code block, with a fence that the text doesn't hold."""
    if len(text) > _FENCED:
        text = f"{text[:_FENCED]}\n[… {len(text) - _FENCED:,} characters more]"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.translate(VISIBLE)}\n{fence}"
