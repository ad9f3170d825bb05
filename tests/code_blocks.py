"""The code blocks of a document, to be run as they stand: files by their `title`, commands in blocks of `sh`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r'^```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Block:
    """A block: a file where it has a title, else commands.

    Attributes:
        kind: Its language.
        title: The name of the file; None of commands.
        text: What it holds.
    """

    kind: str
    title: str | None
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a block without a title, each on one line."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def blocks_of(document: str) -> list[Block]:
    """The blocks with a language of a document in docs/, in order."""
    text = (DOCS / document).read_text(encoding="utf-8")
    return [Block(m["kind"], m["title"], m["text"]) for m in _BLOCK.finditer(text)]


def write_files(document: str, folder: Path) -> list[str]:
    """Writes the files of a document into a folder; returns its commands."""
    commands: list[str] = []
    for block in blocks_of(document):
        if block.title is None:
            assert block.kind == "sh", block
            commands += block.commands
        else:
            (folder / block.title).write_text(block.text, encoding="utf-8")
    return commands
