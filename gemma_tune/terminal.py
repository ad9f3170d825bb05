"""What a run says in the terminal when it begins and when it ends."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma_tune.chat.calls import shown
from gemma_tune.evals.evaluation import Evaluation, as_text
from gemma_tune.runfolder import RunFolder, is_main_process

_SHOWN = 3


def _console() -> Console:
    return Console(highlight=False, quiet=not is_main_process())


def say_begin(*lines: str) -> None:
    """Prints lines as they are, on the main process."""
    console = _console()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def say_end(folder: RunFolder, before: Evaluation, after: Evaluation, note: str | None) -> None:
    """Prints the figures and a few answers before and after, and where the files are."""
    console = _console()
    headline = folder.result.headline
    table = Table(title="Before and after", title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    figures = before.figures or {headline["name"]: headline["before"]}
    ends = after.figures or {headline["name"]: headline["after"]}
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), as_text(name, value), as_text(name, ends[name]))
    console.print(table)
    if after.answers:
        answers = Table(title="Answers", title_justify="left", show_lines=True)
        for name in ("prompt", "wanted", "before", "after"):
            answers.add_column(name, ratio=1)
        for b, a in list(zip(before.answers, after.answers, strict=True))[:_SHOWN]:
            texts = (b["prompt"], shown(b["wanted"]), shown(b["answer"]), shown(a["answer"]))
            answers.add_row(*(Text(t[-300:]) for t in texts))
        console.print(answers)
    console.print("Files:")
    for name, path in {"report": "report.md", **folder.result.artifacts}.items():
        console.print(f"  {name:8} {folder.path / path}", markup=False, soft_wrap=True)
    if note:
        console.print(f"  {note}", markup=False, soft_wrap=True)
