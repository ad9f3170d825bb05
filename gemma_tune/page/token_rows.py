"""A row token by token, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from gemma_tune.page.media import Medium, media_figures
from gemma_tune.page.text import escaped

_PIECES = 4000  # of a longer row the middle is left out: a browser must draw all rows


class Piece(NamedTuple):
    """A token, the tokens that encode a character byte by byte, or a run of equal ones that stand for a medium.

    Attributes:
        text: Its text with invisible characters made visible: ⏎ before a line break, ⇥ before a tab.
        ids: Its token ids; of a run the one that is repeated.
        trained: Whether the loss counts it.
        special: Whether it is one of the tokenizer's special tokens.
        times: How many tokens of this id a run has.
        medium: What a run stands for: `image meter.png`; else empty.
    """

    text: str
    ids: tuple[int, ...]
    trained: bool
    special: bool
    times: int = 1
    medium: str = ""

    @property
    def tokens(self) -> int:
        """How many tokens it is."""
        return len(self.ids) * self.times


@dataclass(frozen=True)
class TokenRow:
    """A row token by token.

    Attributes:
        where: File and line.
        facts: Facts about its tokens.
        badges: What became of it, in a few words each.
        pieces: Its tokens.
        cut: A sentence about the tokens that were cut off; empty where none were.
        media: Those in it, in order.
    """

    where: str
    facts: Sequence[str]
    badges: Sequence[str]
    pieces: Sequence[Piece]
    cut: str = ""
    media: Sequence[Medium] = ()


def token_row(number: int, row: TokenRow, unfolded: bool) -> str:
    """A row that unfolds: its media, and its tokens."""
    facts = [f"<b>{number:,}</b> <b>{escaped(row.where)}</b>", *(f"<span>{escaped(fact)}</span>" for fact in row.facts)]
    facts += [f'<span class="badge">{escaped(badge)}</span>' for badge in row.badges]
    half, pieces = _PIECES // 2, row.pieces
    if len(pieces) <= _PIECES:
        body = _marked(pieces)
    else:
        hidden = pieces[half:-half]
        trained = sum(piece.tokens for piece in hidden if piece.trained)
        left = f"{sum(piece.tokens for piece in hidden):,} tokens are left out here, {trained:,} of them trained"
        body = f'{_marked(pieces[:half])}<span class="gap">{left}</span>{_marked(pieces[-half:])}'
    if row.cut:
        body += f'<span class="gap">{escaped(row.cut)}</span>'
    return (
        f'<details class="row"{" open" if unfolded else ""}><summary>{" ".join(facts)}</summary>'
        f'{media_figures(row.media)}<pre class="tokens" dir="auto">{body}</pre></details>'
    )


def _marked(pieces: Sequence[Piece]) -> str:
    """Tokens with their ids as tooltips; runs of trained ones are marked."""
    parts = []
    for trained, run in groupby(pieces, key=lambda piece: piece.trained):
        text = "".join(map(_token, run))
        parts.append(f"<mark>{text}</mark>" if trained else text)
    return "".join(parts)


def _token(piece: Piece) -> str:
    kind = ' class="special"' if piece.special else ""
    ids = f"{piece.times} × " * bool(piece.medium) + " ".join(map(str, piece.ids))
    text = f"{piece.times:,} × {piece.text}" if piece.medium else piece.text
    return f'<span{kind} title="{ids}">{escaped(text)}</span>'
