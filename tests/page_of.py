"""Reads a page of `recipe=preview` as a browser does."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """What a browser makes of a page.

    Attributes:
        rows: Of each row its summary, its token ids, the ids among them that are marked as trained, and its text.
        tags: Every tag with its attributes.
        text: Everything that is read, in one line.
    """

    def __init__(self, file: str = "preview.html") -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.source = Path(file).read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.text = " ".join(self.text.split())
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in ("meta", "wbr", "img"):
            self._open.append(tag)
        if tag == "details" and found.get("class") == "row":
            self.rows.append({"summary": "", "ids": [], "trained": [], "text": ""})
        if tag == "span" and "pre" in self._open and "title" in found:
            times, _, said = str(found["title"]).rpartition(" × ")
            ids = [int(i) for i in said.split()] * int(times or 1)
            self.rows[-1]["ids"] += ids
            self.rows[-1]["trained"] += ids if "mark" in self._open else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += f"{data} "
        if "pre" in self._open and self.rows:
            self.rows[-1]["text"] += data
        elif "summary" in self._open and self.rows:
            self.rows[-1]["summary"] += data

    def tile(self, name: str) -> str:
        """The figure of a tile."""
        found = re.search(rf"<dt>{name}</dt><dd>(.*?)<small>(.*?)</small>", self.source)
        assert found, name
        return f"{found[1]} {found[2]}"

    def listed(self, title: str) -> list[str]:
        """The places of a list."""
        found = re.search(rf"<summary>[^<]*{title}[^<]*</summary>\s*<ol>(.*?)</ol>", self.source, re.DOTALL)
        return re.findall(r"<code>(.*?)</code>", found[1]) if found else []
