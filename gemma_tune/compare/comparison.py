"""Evaluated models compared with one of them, the baseline, row by row: the first one, or the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from gemma_tune.compare.results import (
    ModelResults,
    differing_conditions,
    listed,
    not_comparable,
    row_notes,
)
from gemma_tune.compare.seeds import SeedGroup, seed_groups
from gemma_tune.config.eval import lower_is_better as lower_is_better
from gemma_tune.errors import UserError
from gemma_tune.evals.base import ScoredRow
from gemma_tune.evals.statistics import Floats, Interval, PairedTest, holm, interval, is_binary, paired_test

LEVEL = 0.95
BEST = "best"  # `compare.baseline`
_HELD_OUT_LOSS = "held_out_loss"


@dataclass(frozen=True)
class ModelStats:
    """The statistics of a model in one figure.

    Attributes:
        model: Its name.
        mean: The mean of its scores.
        test: Its scores compared with the first model's; None for the first model itself.
        p_corrected: The test's p value, corrected for all tests of the comparison; 1 for the first model, and where
            the test doesn't count.
        wins: Rows where it is better than the first model.
        losses: Rows where it is worse.
        ties: Rows where it is neither.
        verdict: `better` or `worse` where p_corrected is below 1 - level, else `not significant`; `not tested` of a
            figure that is a part of another one; empty for the first.
    """

    model: str
    mean: Interval
    test: PairedTest | None = None
    p_corrected: float = 1.0
    wins: int = 0
    losses: int = 0
    ties: int = 0
    verdict: str = ""


@dataclass(frozen=True)
class DifferingRow:
    """A row where not all models have the same score.

    Attributes:
        id: Its id.
        weight: Its tokens, or 1.
        scores: Of each model.
        rows: The row in each model's evaluation.
    """

    id: str
    weight: float
    scores: tuple[float, ...]
    rows: tuple[ScoredRow, ...]

    @property
    def spread(self) -> float:
        """The largest difference between the models; for losses in nats over all tokens of the row."""
        return self.weight * (max(self.scores) - min(self.scores))

    def text(self, key: str) -> str | None:
        """The `prompt` or `wanted` of the first model that has it."""
        return next((str(row[key]) for row in self.rows if row.get(key) is not None), None)

    @property
    def media(self) -> Any:
        """Images, sounds and videos of the prompt, as the first model that has them stored them; else empty."""
        return next((row["media"] for row in self.rows if row.get("media")), [])


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of all models.

    Attributes:
        name: The figure's name.
        lower_is_better: Whether it is a loss.
        binary: Whether scores are 0 or 1.
        count: Rows.
        model_stats: The statistics of each model; the first one is the baseline.
        rows: The rows where the models differ, the most different ones first.
        part_of: A figure that includes all of its rows with the same scores, and is tested in its place; or None.
        other_p_values: Of the tests between the other models, which count for the correction where the baseline was
            chosen by its scores; else empty.
    """

    name: str
    lower_is_better: bool
    binary: bool
    count: int
    model_stats: list[ModelStats]
    rows: list[DifferingRow]
    part_of: str | None = None
    other_p_values: tuple[float, ...] = ()

    def groups(self) -> list[tuple[str, list[DifferingRow]]]:
        """The rows by who is right, largest group first; other scores are one group. Each has a title."""
        if not self.rows or not self.binary:
            return [("Most different first", self.rows)] if self.rows else []
        by_scores: dict[tuple[float, ...], list[DifferingRow]] = {}
        for row in self.rows:
            by_scores.setdefault(row.scores, []).append(row)
        names = [s.model for s in self.model_stats]
        found = []
        for scores, rows in sorted(by_scores.items(), key=lambda item: -len(item[1])):
            right = [n for n, score in zip(names, scores, strict=True) if score]
            wrong = [n for n, score in zip(names, scores, strict=True) if not score]
            found.append((f"{listed(right)} right, {listed(wrong)} wrong", rows))
        return found


@dataclass(frozen=True)
class Comparison:
    """All models in all figures.

    Attributes:
        models: Their names; the first is the baseline.
        figures: Those that all models have rows of.
        others: Figures without rows: the value of each model, or None.
        notes: Notes, a sentence each.
        level: The level of the intervals.
        best_in: The figure in which the baseline is the best model; None where the baseline is the first one named.
        seeds: The models by their settings, where one setting has several seeds; else empty.
    """

    models: list[str]
    figures: list[ComparedFigure]
    others: dict[str, list[float | None]]
    notes: list[str]
    level: float
    best_in: str | None = None
    seeds: list[SeedGroup] = field(default_factory=list)

    def summary(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The numbers alone, by figure and model, for `result.json`."""
        return {f.name: {s.model: dict(_numbers(s)) for s in f.model_stats} for f in self.figures}

    def table(self) -> list[dict[str, Any]]:
        """The same as rows, one for each model in each figure; what the first model lacks is None."""
        rows = [{"figure": f, "model": m, **numbers} for f, ms in self.summary().items() for m, numbers in ms.items()]
        keys = dict.fromkeys(key for row in rows for key in row)
        return [{key: row.get(key) for key in keys} for row in rows]


def compare_models(
    models: Sequence[ModelResults], level: float = LEVEL, baseline: str = "first", left_out: Sequence[str] = ()
) -> Comparison:
    """Compares each model with the baseline, on the same rows.

    The best model is chosen by the rows that it is then tested on. So that this makes no verdict too easy, Holm's
    correction counts the tests between all pairs of models with it, and not only those against the best one.

    Args:
        models: Two or more, with different names.
        level: The level of the intervals.
        baseline: `first`; or `best`: in the first figure with rows that is no held-out loss, else in the loss.
        left_out: Notes on what was not measured, a sentence each.

    Raises:
        UserError: No figure that all models have on the same rows, with numbers as scores.
    """
    names = [m.name for m in models]
    if len(models) < 2:
        raise UserError("A comparison needs two evaluated models or more.")
    if twice := [n for n, count in Counter(names).items() if count > 1]:
        raise UserError(f"{len(models)} models, and more than one is called {twice[0]}: give each its own name.")
    shared = [f for f in models[0].scores if all(m.scores.get(f) for m in models)]
    comparable = [f for f in shared if not not_comparable(f, models)]
    notes = [*left_out, *differing_conditions(models), *row_notes(models, shared, comparable)]
    if not comparable:
        raise UserError(
            f"{listed(names)} have no figure in common that could be compared row by row"
            + (f" ({' '.join(notes)})" if notes else "")
            + ": evaluate them with the same evaluators on the same data, each with recipe=evaluate "
            "model.model_name_or_path=…, and compare those runs."
        )
    best_in = next((f for f in comparable if f != _HELD_OUT_LOSS), comparable[0]) if baseline == BEST else None
    if best_in:
        best = _best(best_in, models)
        models = [models[best], *models[:best], *models[best + 1 :]]
    compared = [_compared(f, models, level, all_pairs=best_in is not None) for f in comparable]
    figures = _judged(list(_without_parts(compared, models)), level)
    plain = dict.fromkeys(f for m in models for f in m.figures if f not in comparable)
    others = {f: [m.figures.get(f) for m in models] for f in plain}
    groups = seed_groups([(m.name, m.setting, m.figures) for m in models if m.setting is not None])
    seeds = groups if any(len(group.runs) > 1 for group in groups) else []
    return Comparison([m.name for m in models], figures, others, notes, level, best_in, seeds)


def _lower_wins(figure: str, models: Sequence[ModelResults]) -> bool:
    return lower_is_better(figure) or any(figure in m.lower_is_better for m in models)


def _best(figure: str, models: Sequence[ModelResults]) -> int:
    """The place of the model with the best mean over the rows; of equal ones the first."""
    means = [
        interval([row["score"] for row in m.scores[figure]], [row.get("weight", 1) for row in m.scores[figure]]).mean
        for m in models
    ]
    found = [mean for mean in means if mean is not None]
    best = min(found) if _lower_wins(figure, models) else max(found)
    return means.index(best)


def _compared(figure: str, models: Sequence[ModelResults], level: float, all_pairs: bool = False) -> ComparedFigure:
    """One figure, with uncorrected p values."""
    by_id = [{row["id"]: row for row in m.scores[figure]} for m in models]
    ids = list(by_id[0])
    scores: list[Floats] = [np.array([rows[i]["score"] for i in ids], dtype=np.float64) for rows in by_id]
    weights = np.array([by_id[0][i].get("weight", 1) for i in ids], dtype=np.float64)
    lower = _lower_wins(figure, models)
    binary = not lower and is_binary(*scores)
    model_stats = [ModelStats(models[0].name, interval(scores[0], weights, level, binary))]
    for model, own in zip(models[1:], scores[1:], strict=True):
        test = paired_test(own, scores[0], weights, level, binary)
        wins, losses = (test.lower, test.higher) if lower else (test.higher, test.lower)
        mean = interval(own, weights, level, binary)
        model_stats.append(ModelStats(model.name, mean, test, test.p_value, wins, losses, test.equal))
    table = np.stack(scores)  # [M, N]
    places = np.flatnonzero((table.max(0) > table.min(0)) & (weights > 0))
    rows = [
        DifferingRow(ids[n], float(weights[n]), tuple(table[:, n].tolist()), tuple(rows[ids[n]] for rows in by_id))
        for n in places
    ]
    rows.sort(key=lambda row: -row.spread)
    pairs = combinations(scores[1:], 2) if all_pairs else ()
    others = tuple(paired_test(a, b, weights, level, binary).p_value for a, b in pairs)
    return ComparedFigure(figure, lower, binary, len(ids), model_stats, rows, other_p_values=others)


def _without_parts(figures: Sequence[ComparedFigure], models: Sequence[ModelResults]) -> Iterator[ComparedFigure]:
    """Marks figures whose rows are part of an earlier one: a second test would count these rows twice."""
    scores = {f.name: [{(row["id"], row["score"]) for row in m.scores[f.name]} for m in models] for f in figures}
    for place, figure in enumerate(figures):
        wholes = (
            earlier.name
            for earlier in figures[:place]
            if all(own <= whole for own, whole in zip(scores[figure.name], scores[earlier.name], strict=True))
        )
        yield replace(figure, part_of=next(wholes, None))


def _judged(figures: Sequence[ComparedFigure], level: float) -> list[ComparedFigure]:
    """Adds Holm's correction over all tests, and the verdicts."""
    tested = [f for f in figures if not f.part_of]
    own = [s.test.p_value for f in tested for s in f.model_stats if s.test]
    p_values = iter(holm([*own, *(p for f in tested for p in f.other_p_values)]))  # those of `own` come first

    def judged(stats: ModelStats, figure: ComparedFigure) -> ModelStats:
        if stats.test is None:
            return stats
        if figure.part_of:
            return replace(stats, p_corrected=1.0, verdict="not tested")
        p_corrected = next(p_values)
        verdict = "not significant"
        if p_corrected < 1 - level:
            lower = (stats.test.difference.mean or 0) < 0
            verdict = "better" if lower == figure.lower_is_better else "worse"
        return replace(stats, p_corrected=p_corrected, verdict=verdict)

    return [replace(f, model_stats=[judged(s, f) for s in f.model_stats]) for f in figures]


def _numbers(stats: ModelStats) -> Iterator[tuple[str, Any]]:
    mean, test = stats.mean, stats.test
    yield from (("mean", mean.mean), ("low", mean.low), ("high", mean.high))
    if test:
        d, tested = test.difference, stats.verdict != "not tested"
        yield from (("difference", d.mean), ("difference_low", d.low), ("difference_high", d.high))
        said = (("p_value", test.p_value), ("p_corrected", stats.p_corrected), ("method", test.method))
        yield from ((key, value if tested else None) for key, value in said)
        yield from (("wins", stats.wins), ("losses", stats.losses), ("ties", stats.ties))
        yield ("verdict", stats.verdict)
