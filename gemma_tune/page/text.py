"""Texts from models and users, made safe to show."""

from __future__ import annotations

from html import escape

# Invisible characters, characters that control a terminal or a browser, and lone surrogates, which UTF-8 can't encode.
_UNSEEN = (
    *range(9), *range(11, 32), *range(0x7F, 0xA0), 0xAD, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F),
    *range(0x2066, 0x206A), *range(0xD800, 0xE000), 0xFEFF,
)  # fmt: skip
# For `str.translate`: replaces each of them by its code point, `‹U+200B›`. Tabs and line breaks stay.
VISIBLE = {code: f"‹U+{code:04X}›" for code in _UNSEEN}


def escaped(text: str) -> str:
    """A text for HTML: no markup, and invisible characters shown by their code points."""
    return escape(text.translate(VISIBLE))
