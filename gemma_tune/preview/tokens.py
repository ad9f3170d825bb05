"""Token ids as readable text, each with whether the loss counts it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from gemma_tune.chat import Rendered
from gemma_tune.media.kinds import shown_name
from gemma_tune.page.text import VISIBLE
from gemma_tune.page.token_rows import Piece

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_VISIBLE = {**VISIBLE, ord("\t"): "⇥\t", ord("\n"): "⏎\n"}


class TokenTexts:
    """The texts of a tokenizer's tokens.

    Args:
        tokenizer: A fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._known: dict[int, str | None] = {}

    def pieces(self, row: Rendered) -> list[Piece]:
        """The row piece by piece; the tokens of a medium that follow each other are one.

        The first token is never a trained one: no token before it predicts it.
        """
        stands_for = _media_at(row)
        marked = enumerate(zip(row.input_ids, row.labels, strict=True))
        tokens = [
            (token, place > 0 and label != -100, self._text(token), stands_for.get(place, ""))
            for place, (token, label) in marked
        ]
        found: list[Piece] = []
        for (is_byte, trained, medium), run in groupby(tokens, key=lambda t: (t[2] is None, t[1], t[3])):
            if medium:
                ids = [token for token, *_ in run]
                found.append(Piece(self._decoded((ids[0],)), (ids[0],), trained, True, len(ids), medium))
            elif is_byte:
                found.append(Piece(self._decoded(both := tuple(t for t, *_ in run)), both, trained, special=False))
            else:
                found += [Piece(text or "", (token,), trained, token in self._special) for token, _, text, _ in run]
        return found

    def _text(self, token: int) -> str | None:
        """The token's text; None for a byte, as only several of them make a character."""
        if token not in self._known:
            is_byte = _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token) or "")
            self._known[token] = None if is_byte else self._decoded((token,))
        return self._known[token]

    def _decoded(self, ids: tuple[int, ...]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text).translate(_VISIBLE)


def _media_at(row: Rendered) -> dict[int, str]:
    """What each soft token stands for, by its place: `image meter.png`."""
    found: dict[int, str] = {}
    for medium in row.media:
        name = f"{medium['kind']} {shown_name(medium['path'])}".translate(VISIBLE)
        soft, place, left = row.input_ids[medium["at"]], medium["at"], medium["tokens"]
        while left and place < len(row.input_ids):  # a medium of several runs has other tokens between them
            if row.input_ids[place] == soft:
                found[place] = name
                left -= 1
            place += 1
    return found


def runs(pieces: Iterable[Piece]) -> Iterator[tuple[bool, list[Piece]]]:
    """Runs of pieces that the loss counts, and runs that it doesn't."""
    for trained, run in groupby(pieces, key=lambda piece: piece.trained):
        yield trained, list(run)
