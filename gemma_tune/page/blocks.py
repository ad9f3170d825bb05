"""The blocks that pages are made of, for `html` and `markdown`; `Charts`, `Tiles` and `TokenRows` are HTML only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from gemma_tune.page.charts import Panel
from gemma_tune.page.media import Medium
from gemma_tune.page.token_rows import TokenRow


class Mono(str):
    """A path, a name or a command: in a monospace font."""

    __slots__ = ()


class Strong(str):
    """A text in bold."""

    __slots__ = ()


class FigureText(NamedTuple):
    """A value as text, and its interval (empty where there is none)."""

    value: str = "–"
    span: str = ""

    def line(self, between: str = " ") -> str:
        """Both in one text: `93.5% (89.2–96.2)`."""
        return f"{self.value}{between}({self.span})" if self.span else self.value


Cell: TypeAlias = str | FigureText


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: Its text, or its parts, some of which may be `Mono` or `Strong`.
        kind: `quiet` for explanations; `verdict`, perhaps with `better` or `worse`, for results; else empty.
    """

    text: str | Sequence[str]
    kind: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading within a section, with a note in parentheses unless it is empty."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """The one figure to look at.

    Attributes:
        name: Its name.
        values: Before and after, or one of them.
        note: A sentence about the difference.
        verdict: `better` or `worse`; other values get no colour.
    """

    name: str
    values: Sequence[FigureText]
    note: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Listing:
    """A list.

    Attributes:
        items: Its lines.
        kind: `bad` for failures, `notes` for warnings; else empty.
        numbered: Whether the items are numbered.
    """

    items: Iterable[str]
    kind: str = ""
    numbered: bool = False


@dataclass(frozen=True)
class Code:
    """Lines to copy, in `language`."""

    text: str
    language: str


class RowGroup(NamedTuple):
    """Rows of a table below a heading of their own.

    Attributes:
        title: The heading.
        note: Facts beside it.
        anchor: The section that it links to.
        rows: The rows.
    """

    title: str
    note: str
    anchor: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """A table. The first column is text, the others are numbers.

    Attributes:
        head: Names of the columns.
        rows: Its cells.
        texts: Whether all columns are text.
        groups: Rows in groups, in place of `rows`.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]] = ()
    texts: bool = False
    groups: Sequence[RowGroup] = ()


@dataclass(frozen=True)
class SampleAnswer:
    """One model's answer to a prompt.

    Attributes:
        name: The model.
        text: The answer; None where it wasn't kept.
        mark: `right`, `wrong`, a score, or empty where it wasn't judged.
        cut_off: Whether it reached the token limit before its end.
    """

    name: str
    text: str | None
    mark: str = ""
    cut_off: bool = False

    @property
    def sign(self) -> str:
        """✓ or ✗, or the score."""
        return {"right": "✓", "wrong": "✗"}.get(self.mark, self.mark)

    @property
    def facts(self) -> str:
        """How it was judged, and whether it was cut off: `✓ right, cut off`."""
        mark = f"{self.sign} {self.mark}" if self.sign != self.mark else self.mark
        return ", ".join(filter(None, [mark, "cut off" if self.cut_off else ""]))


@dataclass(frozen=True)
class SampleRow:
    """A prompt, the reference answer, and the models' answers.

    Attributes:
        prompt: The prompt; None where it isn't known.
        reference: The reference answer; None where there is none.
        answers: The answers.
        id: The row's id, and facts about it; empty where it isn't shown.
        media: Of the prompt.
    """

    prompt: str | None
    reference: str | None
    answers: Sequence[SampleAnswer]
    id: tuple[str, str] = ("", "")
    media: Sequence[Medium] = ()


@dataclass(frozen=True)
class Samples:
    """Answers side by side.

    Attributes:
        rows: The rows.
        open: How many of them are unfolded from the start.
        full: Whether Markdown gives whole texts, in place of a table of their beginnings.
    """

    rows: Sequence[SampleRow]
    open: int = 0
    full: bool = False


@dataclass(frozen=True)
class Curves:
    """Values over the optimizer steps; `picture` is the image file that Markdown shows."""

    panels: Sequence[Panel]
    picture: str


@dataclass(frozen=True)
class Charts:
    """Charts as SVG, by their titles; HTML only: tables give the same numbers."""

    charts: dict[str, str]
    wide: bool = False


class Tile(NamedTuple):
    """A number with a name and a note; `share`, from 0 to 1, is drawn as a bar."""

    name: str
    value: str
    note: str
    warn: bool = False
    share: float | None = None


@dataclass(frozen=True)
class Tiles:
    """The numbers to see first. HTML only."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class TokenRows:
    """Rows token by token, with a legend; `open` of them are unfolded from the start. HTML only."""

    rows: Iterable[TokenRow]
    open: int = 0


@dataclass(frozen=True)
class Folded:
    """Blocks that unfold below a title; in Markdown a section."""

    title: str
    blocks: Sequence[Block]


Block: TypeAlias = (
    Text | Heading | Headline | Listing | Code | Table | Samples | Curves | Charts | Tiles | TokenRows | Folded
)


@dataclass(frozen=True)
class Section:
    """Blocks below a heading. Sections without a title are shown in the header of the page.

    Attributes:
        title: The heading.
        blocks: The blocks.
        anchor: An id for links.
        width: `half` to stand beside the next section where there is room.
    """

    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    anchor: str = ""
    width: Literal["full", "half"] = "full"
