"""Which job of a sweep is best, and from which others it can't be told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gemma_tune.compare.comparison import BEST, compare_models, lower_is_better
from gemma_tune.compare.results import ModelResults
from gemma_tune.compare.seeds import SeedGroup, seed_groups
from gemma_tune.errors import UserError
from gemma_tune.sweep.outcomes import FINISHED, JobOutcome

_TESTED = 100  # jobs; each pair is a test


@dataclass(frozen=True)
class Ranking:
    """The finished jobs by one figure.

    Attributes:
        figure: The figure: the headline of the recipe, or of most jobs where recipes differ.
        lower_is_better: Whether it is a loss.
        best: The best job; others with the same value are in `equal`.
        equal: Jobs with the very same value.
        not_distinct: Jobs that the paired test can't tell apart from the best one.
        worse: Jobs that it finds worse.
        untested: Why nothing was tested, as the end of a sentence; empty where it was.
        groups: The jobs by their settings; more than one in a group are seeds.
    """

    figure: str
    lower_is_better: bool
    best: str
    equal: list[str] = field(default_factory=list)
    not_distinct: list[str] = field(default_factory=list)
    worse: list[str] = field(default_factory=list)
    untested: str = ""
    groups: list[SeedGroup] = field(default_factory=list)

    @property
    def has_seeds(self) -> bool:
        """Whether any setting was run with several seeds."""
        return any(len(group.runs) > 1 for group in self.groups)

    @property
    def best_setting(self) -> SeedGroup | None:
        """The setting with the best mean over its seeds; None where there are not two settings, or no seeds."""
        groups = [group for group in self.groups if self.figure in group.figures]
        if not self.has_seeds or len(groups) < 2:
            return None
        sign = -1 if self.lower_is_better else 1
        return max(groups, key=lambda group: sign * group.figures[self.figure].mean)

    def word(self, name: str) -> str:
        """How a job compares with the best one, in a few words."""
        if name == self.best:
            return "best"
        if name in self.equal:
            return "same value"
        return "worse" if name in self.worse else "not distinct" if name in self.not_distinct else ""


def ranking(jobs: Sequence[JobOutcome], tested: bool = True) -> Ranking | None:
    """The finished jobs by the figure that most of them have as their headline; None where there is none.

    Args:
        jobs: The jobs, with different names.
        tested: Whether each pair of jobs is tested.
    """
    finished = [job for job in jobs if job.status == FINISHED]
    headlines = Counter(job.headline for job in finished if job.headline in job.figures)
    if not headlines:
        return None
    figure = str(max(headlines, key=lambda name: headlines[name]))  # of equal ones the first
    ranked = [job for job in finished if figure in job.figures]
    lower = lower_is_better(figure) or any(figure in job.lower_is_better for job in ranked)
    values = [job.figures[figure] for job in ranked]
    top = min(values) if lower else max(values)
    best = ranked[values.index(top)]
    equal = [job.name for job in ranked if job is not best and job.figures[figure] == top]
    groups = seed_groups([(job.name, job.setting, job.figures) for job in finished])
    verdicts, untested = _verdicts(figure, best, ranked) if tested else ({}, "the sweep has not ended")
    others = {name: verdict for name, verdict in verdicts.items() if name not in equal}
    return Ranking(
        figure,
        lower,
        best.name,
        equal,
        [name for name, verdict in others.items() if verdict == "not significant"],
        [name for name, verdict in others.items() if verdict == "worse"],
        untested,
        groups,
    )


def _verdicts(figure: str, best: JobOutcome, ranked: Sequence[JobOutcome]) -> tuple[dict[str, str], str]:
    """How each other job compares with the best one, and why nothing could be tested."""
    if len(ranked) < 2:
        return {}, "only one job has the figure"
    if not all(job.rows.get(figure) for job in ranked):
        return {}, f"{figure} has no rows of its own"
    if len(ranked) > _TESTED:
        return {}, f"more than {_TESTED} jobs"
    ordered = [best, *(job for job in ranked if job is not best)]  # of equal ones the first is the baseline
    models = [
        ModelResults(j.name, {figure: j.figures[figure]}, {figure: j.rows[figure]}, j.lower_is_better) for j in ordered
    ]
    try:
        comparison = compare_models(models, baseline=BEST)
    except UserError as error:
        return {}, str(error).rstrip(".")
    if comparison.models[0] != best.name:
        return {}, "not all rows behind the figures were kept"
    return {stats.model: stats.verdict for stats in comparison.figures[0].model_stats[1:]}, ""
