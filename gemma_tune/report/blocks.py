"""What a report is made of. `markdown` and `html` say the same blocks, each in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from gemma_tune.report.curves import Panel
from gemma_tune.report.figures import FigureText


class Mono(str):
    """A path, a name or a command: in the letters of code."""

    __slots__ = ()


Cell: TypeAlias = str | FigureText


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: What it says.
        kind: `quiet` for what only explains; `bad` for what went wrong; else empty.
    """

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Headline:
    """The one figure to look at.

    Attributes:
        name: Its name.
        values: Before and after, or one of them.
        note: What is to be known of the change.
        verdict: `better`, `worse`, or anything else.
    """

    name: str
    values: Sequence[FigureText]
    note: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Listing:
    """A list of lines; `bad` where they say what went wrong."""

    items: Sequence[str]
    kind: str = ""


@dataclass(frozen=True)
class Code:
    """Lines to copy, in `language`."""

    text: str
    language: str


@dataclass(frozen=True)
class Table:
    """A table; its first column is text, the others are numbers.

    Attributes:
        head: Names of the columns.
        rows: Cells.
        kinds: A word for each row that says how it went: `better`, `worse`, or empty.
        texts: Whether all columns are text.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kinds: Sequence[str] = ()
    texts: bool = False


@dataclass(frozen=True)
class SampleAnswer:
    """One answer.

    Attributes:
        name: Whose it is.
        text: What it says; None where there is none.
        mark: `right`, `wrong`, a score, or empty where it wasn't judged.
        cut_off: Whether it did not end by itself.
    """

    name: str
    text: str | None
    mark: str = ""
    cut_off: bool = False


@dataclass(frozen=True)
class SampleRow:
    """What was asked and wanted, and what was answered."""

    prompt: str
    wanted: str | None
    sides: Sequence[SampleAnswer]


@dataclass(frozen=True)
class SampleAnswers:
    """Answers side by side; `open` of them are unfolded from the start."""

    rows: Sequence[SampleRow]
    open: int = 0


@dataclass(frozen=True)
class Curves:
    """Values over the optimizer steps; `picture` is the file that shows them where no drawing can stand."""

    panels: Sequence[Panel]
    picture: str


@dataclass(frozen=True)
class Dots:
    """Drawings of the intervals that the table above says in words, as SVG by their titles: only on pages."""

    charts: dict[str, str]


Block: TypeAlias = Text | Headline | Listing | Code | Table | SampleAnswers | Curves | Dots


@dataclass(frozen=True)
class Section:
    """Blocks below a heading; the first one of a report has none."""

    title: str
    blocks: list[Block] = field(default_factory=list)
