"""Tables that a program writes into a page of the documentation, between the marks that name them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def placed_in(program: str, page: str, found: Mapping[str, str]) -> str:
    """The page with each table between `<!-- PROGRAM: NAME -->` and `<!-- end -->`."""
    for name, text in found.items():
        start = f"<!-- {program}: {name} -->\n"
        pattern = re.compile(f"{re.escape(start)}.*?<!-- end -->", re.DOTALL)
        assert pattern.search(page), f"the page has no {start.strip()}"
        page = pattern.sub(lambda _, text=text, start=start: f"{start}{text}\n<!-- end -->", page)
    return page


def write_or_print(program: str, page: Path | None, found: Mapping[str, str]) -> None:
    """Writes the tables into a page, or prints them where none is named."""
    if page:
        page.write_text(placed_in(program, page.read_text(encoding="utf-8"), found), encoding="utf-8")
    else:
        print("\n\n".join(f"{name}\n\n{text}" for name, text in found.items()))
