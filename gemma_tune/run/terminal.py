"""What a run prints when it starts and when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.page.blocks import Cell, FigureText, SampleRow
from gemma_tune.page.terminal import print_figures
from gemma_tune.page.text import VISIBLE
from gemma_tune.report.answers import sample_rows
from gemma_tune.report.exported import say_exported
from gemma_tune.report.figures import Change, changes, headline, moved_line
from gemma_tune.report.use import next_commands
from gemma_tune.run.folder import RunFolder

_SHOWN = 3  # answers
_MOST = 300  # characters of a text
_BESIDE = 30  # columns of a terminal that each text needs to stand beside others


def _console() -> Console:
    return Console(highlight=False)


def say(*lines: str) -> None:
    """Prints lines as they are."""
    console = _console()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def say_end(folder: RunFolder, before: Evaluation, after: Evaluation, notes: Sequence[str]) -> None:
    """Prints the figures and a few answers before and after, what failed, where the files are, and how to go on.

    Args:
        folder: The run folder, with its result.
        before: The evaluation before training; empty where there is none.
        after: The evaluation after training.
        notes: Where else the run can be followed, a line each.
    """
    console, result = _console(), folder.result
    figures = changes(before, after) or headline(result.headline)
    if figures:
        _print_figures(console, figures)
        if any(f.figure for f in figures):
            console.print("In brackets: 95% intervals over the rows.", style="dim")
    for change in figures:
        if line := moved_line(change):
            console.print(line, markup=False, soft_wrap=True)
    if after.answers:
        console.print(_answers(sample_rows(before, after)[:_SHOWN], console.width))
    for where, reason in result.failures.items():
        console.print(f"not measured: {where}: {reason}", style="red", markup=False, soft_wrap=True)
    console.print("Files:")
    for name, path in {"report": "report.md", "page": "report.html", **result.artifacts}.items():
        console.print(f"  {name:8} {folder.path / path}", markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"  {note}", markup=False, soft_wrap=True)
    if commands := next_commands(folder):
        console.print("Next:")
    for what, command in commands:
        console.print(f"  {what}:", markup=False)
        console.print(f"    {command}", markup=False, soft_wrap=True)


def say_files(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Prints quality, size and speed of what a run exported, and how to use it; see `say_exported`.

    Args:
        folder: The run folder.
        metrics: Those of its result.
    """
    if exported := metrics.get("exported"):
        say_exported(exported, {f["name"]: folder / "export" / f["name"] for f in exported["files"][1:]}, _console())


def _print_figures(console: Console, figures: Sequence[Change]) -> None:
    columns: dict[str, list[FigureText | None]] = {
        "before": [f.before for f in figures],
        "after": [f.after for f in figures],
        "difference": [f.difference for f in figures],
    }
    if not any(f.before.value != "–" for f in figures):
        columns = {"": columns["after"]}
    elif not any(columns["difference"]):
        del columns["difference"]
    rows: list[list[Cell]] = [
        [figure.name.replace("_", " "), *(_without_unit(cell) for cell in cells)]
        for figure, *cells in zip(figures, *columns.values(), strict=True)
    ]
    print_figures(console, "Before and after" if len(columns) > 1 else "Figures", ["", *columns], rows)


def _without_unit(text: FigureText | None) -> FigureText:
    return FigureText(text.value.replace(" points", ""), text.span) if text else FigureText("")


def _answers(rows: Sequence[SampleRow], width: int) -> Table:
    """Answers side by side, each with whether it is right; where the terminal is narrow, below each other.

    Args:
        rows: The rows.
        width: Columns of the terminal.
    """
    names = dict.fromkeys(answer.name for row in rows for answer in row.answers)
    texts = []
    for row in rows:
        answers = {answer.name: f"{answer.sign} {answer.text or ''}".strip() for answer in row.answers}
        found = (row.prompt or "", row.reference or "", *(answers.get(name, "") for name in names))
        texts.append([Text(t[-_MOST:].translate(VISIBLE)) for t in found])
    head = ("prompt", "reference", *names)
    if width < _BESIDE * len(head):
        table = Table(title="Answers", title_justify="left", box=SIMPLE, show_header=False, pad_edge=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for row_texts in texts:
            for name, text in zip(head, row_texts, strict=True):
                table.add_row(name, text, end_section=name == head[-1])
        return table
    table = Table(title="Answers", title_justify="left", show_lines=True)
    for name in head:
        table.add_column(name, ratio=1, overflow="fold")
    for row_texts in texts:
        table.add_row(*row_texts)
    return table
