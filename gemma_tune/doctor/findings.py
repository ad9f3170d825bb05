"""What was found out about one thing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from rich.console import Console
from rich.table import Table
from rich.text import Text


class State(Enum):
    """How a thing is; the value is its mark in the terminal."""

    WORKS = "✓"
    LIMITS = "!"  # only some recipes or options can't be used
    BROKEN = "✗"  # no run can work


_STYLES = {State.WORKS: "green", State.LIMITS: "yellow", State.BROKEN: "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        name: What was looked at, in a word or two.
        state: How it is.
        said: What was found.
        fix: What to do; empty where it works.
    """

    name: str
    state: State
    said: str
    fix: str = ""

    def row(self) -> dict[str, str]:
        """As `metrics["findings"]` holds it."""
        return {"name": self.name, "state": self.state.name.lower(), "said": self.said, "fix": self.fix}


def works(name: str, said: str) -> Finding:
    """A thing that works."""
    return Finding(name, State.WORKS, said)


def limits(name: str, said: str, fix: str) -> Finding:
    """A thing without which some recipes or options can't be used."""
    return Finding(name, State.LIMITS, said, fix)


def broken(name: str, said: str, fix: str) -> Finding:
    """A thing without which no run can work."""
    return Finding(name, State.BROKEN, said, fix)


def show(found: Iterable[Finding], out: Console) -> None:
    """Prints the findings as lines with a mark; what to do stands below what was found."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for one in found:
        text = Text(one.said)
        if one.fix:
            text.append(f"\n→ {one.fix}", style=_STYLES[one.state])
        table.add_row(Text(one.state.value, style=_STYLES[one.state]), Text(one.name), text)
    out.print(table)
