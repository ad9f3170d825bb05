"""Evaluated models against the first of them, row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from gemma_tune.config.eval import lower_is_better as lower_is_better
from gemma_tune.errors import UserError
from gemma_tune.evals.statistics import Floats, Interval, PairedTest, holm, interval, is_binary, paired_test

LEVEL = 0.95

# A row that a model was measured on: `id` (the same for every model), `score` (1 right, 0 wrong; or nats a token),
# perhaps `weight` (tokens), and for people perhaps `prompt`, `wanted`, `answer`, `stopped` (False: it was cut off).
ScoredRow: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class ModelResults:
    """What one model was measured at.

    Attributes:
        name: What it is called on the page.
        figures: Its figures by name, those without rows too.
        scores: Of figures that are the mean of scores, the rows.
        lower_is_better: Figures that are the better the lower they are, beside those whose name says so.
        conditions: How it was measured (`dtype`, …); empty where that isn't known.
    """

    name: str
    figures: Mapping[str, float]
    scores: Mapping[str, Sequence[ScoredRow]]
    lower_is_better: Collection[str] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelStats:
    """A model in one figure.

    Attributes:
        model: Its name.
        mean: The mean of its scores.
        test: Its scores against the first model's; None for the first model itself.
        p_corrected: The test's p value, corrected for all tests of the comparison; 1 for the first model, and where
            the test is none of them.
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
        rows: What each model's evaluation says of it.
    """

    id: str
    weight: float
    scores: tuple[float, ...]
    rows: tuple[ScoredRow, ...]

    @property
    def spread(self) -> float:
        """How far apart the models are: of losses, in nats over all tokens of the row."""
        return self.weight * (max(self.scores) - min(self.scores))

    def text(self, key: str) -> str | None:
        """What the first model that says it says for `prompt` or `wanted`."""
        return next((str(row[key]) for row in self.rows if row.get(key) is not None), None)


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of all models.

    Attributes:
        name: The figure's name.
        lower_is_better: Whether it is a loss.
        binary: Whether scores are right or wrong.
        count: Rows.
        model_stats: Of each model, the first one first.
        rows: The rows where the models differ, the most different ones first.
        part_of: The figure that has all of its rows, with the same scores, and is tested in its place; or None.
    """

    name: str
    lower_is_better: bool
    binary: bool
    count: int
    model_stats: list[ModelStats]
    rows: list[DifferingRow]
    part_of: str | None = None

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
            found.append((f"{_listed(right)} right, {_listed(wrong)} wrong", rows))
        return found


@dataclass(frozen=True)
class Comparison:
    """All models in all figures.

    Attributes:
        models: Their names; the others are held against the first.
        figures: Those that all models have rows of.
        others: Figures without rows: each model's value, None where it has none.
        notes: What is to be known of it, a sentence each.
        level: Of the intervals.
    """

    models: list[str]
    figures: list[ComparedFigure]
    others: dict[str, list[float | None]]
    notes: list[str]
    level: float

    def summary(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The numbers alone, by figure and model, for `result.json`."""
        return {f.name: {s.model: dict(_numbers(s)) for s in f.model_stats} for f in self.figures}

    def table(self) -> list[dict[str, Any]]:
        """The same as rows, one for each model in each figure; what the first model lacks is None."""
        rows = [{"figure": f, "model": m, **numbers} for f, ms in self.summary().items() for m, numbers in ms.items()]
        keys = dict.fromkeys(key for row in rows for key in row)
        return [{key: row.get(key) for key in keys} for row in rows]


def compare_models(models: Sequence[ModelResults], level: float = LEVEL) -> Comparison:
    """Holds each model against the first one, on the same rows.

    Args:
        models: Two or more, with names of their own.
        level: Of the intervals.

    Raises:
        UserError: Nothing that all models were measured at on the same rows, with numbers as scores.
    """
    names = [m.name for m in models]
    if len(models) < 2:
        raise UserError("A comparison needs two evaluated models or more.")
    if twice := [n for n, count in Counter(names).items() if count > 1]:
        raise UserError(f"{len(models)} models, and more than one is called {twice[0]}: give each a name of its own.")
    shared = [f for f in models[0].scores if all(m.scores.get(f) for m in models)]
    comparable = [f for f in shared if not _reason(f, models)]
    notes = [*_other_conditions(models), *_notes(models, shared, comparable)]
    if not comparable:
        raise UserError(
            f"{_listed(names)} have no figure in common that could be compared row by row"
            + (f" ({' '.join(notes)})" if notes else "")
            + ": measure them with the same evaluators on the same data, each with recipe=evaluate "
            "model.model_name_or_path=…, and compare those runs."
        )
    figures = _judged(list(_without_parts([_compared(f, models, level) for f in comparable], models)), level)
    plain = dict.fromkeys(f for m in models for f in m.figures if f not in comparable)
    others = {f: [m.figures.get(f) for m in models] for f in plain}
    return Comparison(names, figures, others, notes, level)


def _reason(figure: str, models: Sequence[ModelResults]) -> str | None:
    """Why the models can't be held against each other in a figure; None where they can."""
    first, first_ids = models[0], {row["id"] for row in models[0].scores[figure]}
    for model in models:
        rows = model.scores[figure]
        ids = {row["id"] for row in rows}
        if len(ids) < len(rows):
            return f"in {model.name}, ids stand twice ({len(rows) - len(ids):,} rows too many)"
        bad = [row["id"] for row in rows if row["score"] is None or not np.isfinite(row["score"])]
        if bad:
            return f"{model.name} has no number as score of {len(bad):,} of {len(rows):,} rows (the first is {bad[0]})"
        ones, others = len(first_ids - ids), len(ids - first_ids)
        if ones or others:
            return (
                f"the rows aren't the same. {first.name} has {len(first_ids):,}, {ones:,} of them not of "
                f"{model.name}; {model.name} has {len(ids):,}, {others:,} of them not of {first.name}"
            )
    weights = [{row["id"]: row.get("weight", 1) for row in m.scores[figure]} for m in models]
    if other := [m.name for m, w in zip(models, weights, strict=True) if w != weights[0]]:
        return f"{_listed(other)} cut the rows into other tokens than {first.name}, so nats a token can't be compared"
    return None


def _other_conditions(models: Sequence[ModelResults]) -> Iterator[str]:
    """What the models weren't measured alike in, as far as that is known."""
    for key in dict.fromkeys(key for m in models for key in m.conditions):
        values = [(m.name, m.conditions[key]) for m in models if key in m.conditions]
        said = [(n, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for n, v in values]
        if len({value for _, value in said}) > 1:
            yield f"{key} wasn't the same: {_listed([f'{value} for {name}' for name, value in said])}."


def _notes(models: Sequence[ModelResults], shared: Sequence[str], comparable: Sequence[str]) -> Iterator[str]:
    """What is to be known of the rows before their figures are read."""
    for figure in shared:
        if figure not in comparable:
            yield f"{figure} is left out: {_reason(figure, models)}."
            continue
        for model in models:
            rows, value = model.scores[figure], model.figures.get(figure)
            mean = interval([r["score"] for r in rows], [r.get("weight", 1) for r in rows]).mean
            if value is not None and mean is not None and not np.isclose(value, mean, rtol=1e-4, atol=1e-6):
                yield (
                    f"{figure} of {model.name} is {value:,.4g} over all rows that were evaluated; what stands here is "
                    f"of the {len(rows):,} rows that were kept."
                )
    for figure in dict.fromkeys(f for m in models for f in m.scores if f not in shared):
        lacking = [m.name for m in models if not m.scores.get(figure)]
        yield f"{figure} can't be compared: {_listed(lacking)} {'has' if len(lacking) == 1 else 'have'} no rows of it."


def _compared(figure: str, models: Sequence[ModelResults], level: float) -> ComparedFigure:
    """One figure, with p values as they are."""
    by_id = [{row["id"]: row for row in m.scores[figure]} for m in models]
    ids = list(by_id[0])
    scores: list[Floats] = [np.array([rows[i]["score"] for i in ids], dtype=np.float64) for rows in by_id]
    weights = np.array([by_id[0][i].get("weight", 1) for i in ids], dtype=np.float64)
    lower = lower_is_better(figure) or any(figure in m.lower_is_better for m in models)
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
    return ComparedFigure(figure, lower, binary, len(ids), model_stats, rows)


def _without_parts(figures: Sequence[ComparedFigure], models: Sequence[ModelResults]) -> Iterator[ComparedFigure]:
    """The same, with those marked whose rows an earlier figure has: a second test of them would count them twice."""
    scores = {f.name: [{(row["id"], row["score"]) for row in m.scores[f.name]} for m in models] for f in figures}
    for place, figure in enumerate(figures):
        wholes = (
            earlier.name
            for earlier in figures[:place]
            if all(own <= whole for own, whole in zip(scores[figure.name], scores[earlier.name], strict=True))
        )
        yield replace(figure, part_of=next(wholes, None))


def _judged(figures: Sequence[ComparedFigure], level: float) -> list[ComparedFigure]:
    """The same with Holm's correction over all tests, and the verdicts."""
    p_values = iter(holm([s.test.p_value for f in figures if not f.part_of for s in f.model_stats if s.test]))

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


def _listed(names: Sequence[str]) -> str:
    """Names as in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
