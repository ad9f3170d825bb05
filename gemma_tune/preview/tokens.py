"""Token ids as readable text, each with whether the loss counts it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from gemma_tune.chat import Rendered
from gemma_tune.page.blocks import Piece
from gemma_tune.page.text import VISIBLE

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
        """The row piece by piece. The first token is never a trained one: no token before it predicts it."""
        marked = enumerate(zip(row.input_ids, row.labels, strict=True))
        tokens = [(token, place > 0 and label != -100, self._text(token)) for place, (token, label) in marked]
        found: list[Piece] = []
        for (is_byte, trained), run in groupby(tokens, key=lambda t: (t[2] is None, t[1])):
            if is_byte:
                ids = tuple(token for token, *_ in run)
                found.append(Piece(self._decoded(ids), ids, trained, special=False))
            else:
                found += [Piece(text or "", (token,), trained, token in self._special) for token, _, text in run]
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


def runs(pieces: Iterable[Piece]) -> Iterator[tuple[bool, list[Piece]]]:
    """Runs of pieces that the loss counts, and runs that it doesn't."""
    for trained, run in groupby(pieces, key=lambda piece: piece.trained):
        yield trained, list(run)
