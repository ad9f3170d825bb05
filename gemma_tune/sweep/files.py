"""The files of a sweep's table: Markdown, page and JSON."""

from __future__ import annotations

from pathlib import Path

from gemma_tune.page.html import html
from gemma_tune.page.markdown import markdown
from gemma_tune.run.manifest import atomic_write, write_json
from gemma_tune.sweep.sections import sections
from gemma_tune.sweep.table import SweepTable

PAGE_MARK = '<meta name="generator" content="gemma_tune sweep">'


def write_table(table: SweepTable, folder: Path) -> None:
    """Writes sweep.md, sweep.html and sweep.json into a folder.

    Raises:
        OSError: They can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title = f"Sweep {table.name.removeprefix('sweep-')}"
    for file, lines in (
        ("sweep.md", markdown(title, sections(table))),
        ("sweep.html", html(title, PAGE_MARK, sections(table))),
    ):
        atomic_write(folder / file, "".join(f"{line}\n" for line in lines))
    write_json(folder / "sweep.json", table.as_tree())
