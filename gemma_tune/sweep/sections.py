"""The content of a sweep's page and of its Markdown file."""

from __future__ import annotations

from gemma_tune.compare.wording import SPREAD, Wording
from gemma_tune.page.blocks import Block, Charts, Code, Headline, Listing, Mono, Section, Table, Text
from gemma_tune.page.charts import Dot, interval_chart
from gemma_tune.sweep.outcomes import FAILED
from gemma_tune.sweep.table import SweepTable

_DRAWN = 24  # runs of a chart
_METHODS = (
    "Values have their 95% intervals over the rows: Wilson’s for right and wrong answers, Student’s t for other "
    "scores. The best run is that with the best value; each other run is tested against it on the same rows "
    "(McNemar’s exact test, or the paired t-test). The best one was chosen by these rows, so its value is rather too "
    "good, and Holm’s correction counts the tests between all pairs of runs: the chance of any false verdict is 5% at "
    "most. Not distinguishable does not mean equal."
)


def sections(table: SweepTable) -> list[Section]:
    """Headline, runs, settings over seeds, failures, and the commands to go on with."""
    found = [Section("", _top(table)), Section("Runs", _runs(table))]
    if seeds := table.seed_rows(table.figures):
        found.append(Section("Over seeds", [Table(*seeds), Text(SPREAD, "quiet")]))
    if failed := [f"{job.name}: {job.reason}" for job in table.jobs if job.status == FAILED]:
        found.append(Section("Failed", [Listing(failed, "bad")]))
    found.append(Section("Commands", _commands(table)))
    if table.ranking and not table.ranking.untested:
        found.append(Section("How it was computed", [Text(_METHODS, "quiet")]))
    return found


def _top(table: SweepTable) -> list[Block]:
    blocks: list[Block] = [Text(f"{table.counts()}.", "quiet")]
    if r := table.ranking:
        blocks.append(Headline(r.figure, [table.measured[r.best][r.figure].after], f"the best run: {r.best}"))
    return [*blocks, *(Text(line, "verdict") for line in table.verdict())]


def _runs(table: SweepTable) -> list[Block]:
    figures = table.figures
    blocks: list[Block] = [Table(["run", "", *figures], [table.row(job, figures) for job in table.jobs])]
    if chart := _chart(table):
        blocks.append(chart)
    folders = [[job.name, Mono(job.folder)] for job in table.jobs if job.folder]
    return [*blocks, Table(["run", "folder"], folders, texts=True)]


def _chart(table: SweepTable) -> Charts | None:
    """The figure of each run with its interval; of many runs the best ones."""
    if (r := table.ranking) is None:
        return None
    found = [(name, figures[r.figure]) for name, figures in table.measured.items() if r.figure in figures]
    drawn = [(name, change, change.figure) for name, change in found if change.figure]
    if len(drawn) < 2 or len(drawn) < len(found):
        return None
    means = {name: figure.model_stats[-1].mean for name, _, figure in drawn}
    sign = 1 if r.lower_is_better else -1
    kept = sorted(drawn, key=lambda one: sign * (means[one[0]].mean or 0))[:_DRAWN]
    dots = [
        Dot(name, means[name], change.after.line(), "better" if name == r.best else "")
        for name, change, _ in drawn
        if any(name == other for other, _, _ in kept)
    ]
    wording = Wording(drawn[0][2])
    unit = "%" if wording.share else ""
    caption = "← better" if r.lower_is_better else "better →"
    chart = interval_chart(dots, r.figure, caption, lambda v, n: wording.tick(v, n) + unit, around_zero=False)
    return Charts({f"{r.figure} with 95% intervals": chart})


def _commands(table: SweepTable) -> list[Block]:
    blocks: list[Block] = [
        Text("The sweep; repeated, it runs only what is missing:"),
        Code(table.command, "bash"),
    ]
    finished = [str(job.folder) for job in table.jobs if job.name in table.measured and job.folder]
    if len(finished) > 1:
        blocks += [
            Text("The rows where the runs differ:"),
            Code(
                f"python -m gemma_tune recipe=compare 'compare.models=[{','.join(finished)}]' compare.baseline=best",
                "bash",
            ),
        ]
    if table.ranking:
        best = next(job for job in table.jobs if job.name == table.ranking.best)
        where = [Mono(best.folder), "; what to do with it stands in its ", Mono("report.md"), "."]
        blocks.append(Text(["The best run is in ", *where]))
    return blocks
