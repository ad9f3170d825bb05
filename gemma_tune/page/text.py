"""What our HTML pages have in common: one file each, without a network and without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

# Nothing is loaded and nothing is run, whatever the texts on the page hold
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# Characters that can't be seen, that a terminal or a browser would obey, or that no file can hold (lone surrogates).
_UNSEEN = (
    *range(9), *range(11, 32), *range(0x7F, 0xA0), 0xAD, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F),
    *range(0x2066, 0x206A), *range(0xD800, 0xE000), 0xFEFF,
)  # fmt: skip
# The same, for `str.translate`: as what they are called. Tabs and line breaks aren't among them.
VISIBLE = {code: f"‹U+{code:04X}›" for code in _UNSEEN}


def escaped(text: str) -> str:
    """A text as it stands on the page: nothing in it is markup, and what can't be seen is named."""
    return escape(text.translate(VISIBLE))


def document(title: str, mark: str, styles: Path, body: Iterable[str]) -> Iterator[str]:
    """The lines of a page.

    Args:
        title: Its title, which is its heading, too.
        mark: A line for the head, by which the page is known as ours.
        styles: A CSS file, after the one that all pages have.
        body: What stands below the heading: the rest of `<header>`, then `<main>`.
    """
    css = "".join(file.read_text(encoding="utf-8") for file in (Path(__file__).parent / "page.css", styles))
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield mark
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<header>"
    yield f"<h1>{escape(title)}</h1>"
    yield from body
    yield "</body>\n</html>"
