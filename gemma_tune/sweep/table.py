"""The table of a sweep, and how it stands in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gemma_tune.compare.wording import SPREAD, seed_table
from gemma_tune.evals.evaluation import Evaluation, as_text, is_share
from gemma_tune.page.blocks import Cell, FigureText
from gemma_tune.page.terminal import fitting, print_figures
from gemma_tune.report.figures import Change, changes
from gemma_tune.sweep.outcomes import FINISHED, INTERRUPTED, WAITING, JobOutcome
from gemma_tune.sweep.ranking import Ranking, ranking


@dataclass(frozen=True)
class SweepTable:
    """A sweep as far as it has come.

    Attributes:
        name: Its name: `sweep-` and 8 hex digits of what was asked.
        command: The command that was given.
        jobs: The jobs, in their order.
        ranking: Which one is best; None where no job has a figure.
        measured: The figures of each finished job, by its name, with their intervals.
    """

    name: str
    command: str
    jobs: Sequence[JobOutcome]
    ranking: Ranking | None
    measured: dict[str, dict[str, Change]]

    @classmethod
    def of(cls, name: str, command: str, jobs: Sequence[JobOutcome], tested: bool = True) -> SweepTable:
        """The table of these jobs; without tests while jobs are still to run."""
        measured = {job.name: _measured(job) for job in jobs if job.status == FINISHED}
        return cls(name, command, jobs, ranking(jobs, tested), measured)

    @property
    def figures(self) -> list[str]:
        """The one that ranks first, then those with rows, then others; no counts that are the same in all jobs."""
        found = [c for figures in self.measured.values() for c in figures.values() if not self._is_count(c.name)]
        first = [self.ranking.figure] if self.ranking else []
        return list(dict.fromkeys([*first, *(c.name for c in found if c.figure), *(c.name for c in found)]))

    def _is_count(self, figure: str) -> bool:
        values = [job.figures[figure] for job in self.jobs if figure in job.figures]
        return len(values) > 1 and isinstance(values[0], int) and len(set(values)) == 1

    def row(self, job: JobOutcome, figures: Sequence[str]) -> list[Cell]:
        """Name, how it compares with the best, and the figures; a failed job has its reason behind its name."""
        said = f"{job.name}: {job.reason}" if job.reason else job.name
        word = self.ranking.word(job.name) if self.ranking and job.status == FINISHED else ""
        measured = self.measured.get(job.name, {})
        cells = [measured[name].after if name in measured else FigureText() for name in figures]
        return [said, word if job.status == FINISHED else job.status, *cells]

    def counts(self) -> str:
        """How many jobs there are, by what became of them: `6 jobs: 5 finished, 1 failed`."""
        states = [job.status for job in self.jobs]
        parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        return f"{len(states)} job{'s' if len(states) != 1 else ''}: {', '.join(parts)}"

    def verdict(self) -> list[str]:
        """Which job is best by what, and which others can't be told apart from it, in sentences."""
        if (r := self.ranking) is None:
            return []
        better = "lower" if r.lower_is_better else "higher"
        found = [f"Best in {r.figure} ({better} is better): {r.best}, {self.measured[r.best][r.figure].after.line()}."]
        if r.equal:
            found.append(f"The same value: {'; '.join(r.equal)}.")
        if r.not_distinct:
            found.append(f"Not distinguishable from the best one: {'; '.join(r.not_distinct)}.")
        if r.worse:
            found.append(f"Worse: {'; '.join(r.worse)}.")
        if r.untested and len(self.measured) > 1:
            found.append(f"The differences were not tested: {r.untested}.")
        if setting := r.best_setting:
            spread = setting.figures[r.figure]
            seeds = f"{spread.count} seeds" if spread.count > 1 else "1 seed"
            found.append(
                f"Best mean over seeds: {setting.setting or 'all'}, {as_text(r.figure, spread.mean)} of {seeds}."
            )
        return found

    def seed_rows(self, figures: Sequence[str]) -> tuple[list[str], list[list[Cell]]] | None:
        """Head and rows of the table of settings; None where no setting has several seeds."""
        if self.ranking is None or not self.ranking.has_seeds:
            return None
        return seed_table(self.ranking.groups, {name: is_share(name, False) for name in figures})

    def as_tree(self) -> dict[str, Any]:
        """What `sweep.json` holds."""
        ranked = {k: v for k, v in asdict(self.ranking).items() if k != "groups"} if self.ranking else None
        groups = [asdict(group) for group in self.ranking.groups] if self.ranking else []
        jobs = [job.as_tree() for job in self.jobs]
        return {"name": self.name, "command": self.command, "jobs": jobs, "ranking": ranked, "settings": groups}

    def show(self, console: Console, folder: Path) -> None:
        """Prints the table, as many of its figures as the terminal has room for."""
        shown = fitting(console, self.figures, lambda names: [self.row(job, names) for job in self.jobs])
        head = ["run", "", *(name.replace("_", " ") for name in shown)]
        print_figures(console, self.counts(), head, [self.row(job, shown) for job in self.jobs], whole=True)
        if seeds := self.seed_rows(fitting(console, shown, lambda names: (self.seed_rows(names) or ([], []))[1])):
            print_figures(console, "Over seeds", [name.replace("_", " ") for name in seeds[0]], seeds[1], whole=True)
        notes = ["In brackets: 95% intervals over the rows."] if self.measured else []
        notes += [SPREAD] if seeds else []
        if left := len(self.figures) - len(shown):
            notes.append(f"{left} more figure{'s' if left != 1 else ''} on the page.")
        console.print(" ".join(notes), style="dim")
        for line in self.verdict():
            console.print(line, markup=False)
        if any(job.status in (WAITING, INTERRUPTED) for job in self.jobs):
            console.print("The same command goes on: finished jobs are not run again.", markup=False)
        console.print(f"Table: {folder / 'sweep.md'}, {folder / 'sweep.html'}", markup=False, soft_wrap=True)


def _measured(job: JobOutcome) -> dict[str, Change]:
    rows = {name: list(rows) for name, rows in job.rows.items() if name in job.figures}
    after = Evaluation(dict(job.figures), rows, lower_is_better=list(job.lower_is_better))
    return {change.name: change for change in changes(Evaluation(), after)}
