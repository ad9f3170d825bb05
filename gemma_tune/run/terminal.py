"""What a run says in the terminal when it begins and when it ends."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.page.text import VISIBLE
from gemma_tune.report.answers import marks, sample_rows
from gemma_tune.report.blocks import SampleRow
from gemma_tune.report.figures import Change, FigureText, changes, headline, moved_line
from gemma_tune.run.folder import RunFolder, is_main_process

_SHOWN = 3
_MOST = 300  # characters of a text
_WIDE = 1000  # columns of a terminal that holds every table


def _console() -> Console:
    return Console(highlight=False, quiet=not is_main_process())


def say(*lines: str) -> None:
    """Prints lines as they are, on the main process."""
    console = _console()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def say_end(folder: RunFolder, before: Evaluation, after: Evaluation, note: str | None) -> None:
    """Prints the figures and a few answers before and after, what failed, and where the files are.

    Args:
        folder: The run folder, with its result.
        before: The evaluation before training; empty where there was none.
        after: The one after.
        note: Where else to follow the run, if anywhere.
    """
    console, result = _console(), folder.result
    figures = changes(before, after) or headline(result.headline)
    if figures:
        table = _figures(figures, " ")
        wide = console.measure(table, options=console.options.update_width(_WIDE)).maximum
        console.print(table if wide <= console.width else _figures(figures, "\n"))
        if any(f.figure for f in figures):
            console.print("In brackets: 95% intervals over the rows.", style="dim")
    for change in figures:
        if line := moved_line(change):
            console.print(line, markup=False, soft_wrap=True)
    if after.answers:
        console.print(_answers(sample_rows(before, after)[:_SHOWN]))
    for where, reason in result.failures.items():
        console.print(f"not measured: {where}: {reason}", style="red", markup=False, soft_wrap=True)
    console.print("Files:")
    for name, path in {"report": "report.md", "page": "report.html", **result.artifacts}.items():
        console.print(f"  {name:8} {folder.path / path}", markup=False, soft_wrap=True)
    if note:
        console.print(f"  {note}", markup=False, soft_wrap=True)


def _figures(figures: Sequence[Change], between: str) -> Table:
    """The figures; `between` stands between a value and its interval."""
    columns: dict[str, list[FigureText | None]] = {
        "before": [f.before for f in figures],
        "after": [f.after for f in figures],
        "difference": [f.difference for f in figures],
    }
    if not any(f.before.value != "–" for f in figures):
        columns = {"after": columns["after"]}
    elif not any(columns["difference"]):
        del columns["difference"]
    title = "Before and after" if len(columns) > 1 else "Figures"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(name if len(columns) > 1 else "", justify="right", no_wrap=True)
    for name, *cells in zip([f.name for f in figures], *columns.values(), strict=True):
        table.add_row(Text(name.replace("_", " ")), *(Text(_said(said, between)) for said in cells))
    return table


def _said(said: FigureText | None, between: str) -> str:
    return said.line(between).replace(" points", "") if said else ""


def _answers(rows: Sequence[SampleRow]) -> Table:
    """Answers side by side, each with whether it is right."""
    names = dict.fromkeys(side.name for row in rows for side in row.sides)
    table = Table(title="Answers", title_justify="left", show_lines=True)
    for name in ("prompt", "wanted", *names):
        table.add_column(name, ratio=1)
    for row in rows:
        said = {
            side.name: f"{sign} {side.text or ''}".strip()
            for side, sign in zip(row.sides, marks(row.sides), strict=True)
        }
        texts = (row.prompt, row.wanted or "", *(said.get(name, "") for name in names))
        table.add_row(*(Text(t[-_MOST:].translate(VISIBLE)) for t in texts))
    return table
