"""Evaluation results of models, and whether they can be compared row by row."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gemma_tune.evals.base import ScoredRow
from gemma_tune.evals.evaluation import Evaluation, main_metric
from gemma_tune.evals.statistics import interval


@dataclass(frozen=True)
class ModelResults:
    """The evaluation results of one model.

    Attributes:
        name: Its name on the page.
        figures: Its figures by name, including those without rows.
        scores: The rows of each figure that is a mean of scores.
        lower_is_better: Figures where lower is better, beside those whose name says so.
        conditions: Conditions of the evaluation (`dtype`, …); empty where they aren't known.
        setting: What it shares with the runs that differ from it by the seed alone; None where that isn't known.
    """

    name: str
    figures: Mapping[str, float]
    scores: Mapping[str, Sequence[ScoredRow]]
    lower_is_better: Collection[str] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)
    setting: str | None = None

    @property
    def headline(self) -> str | None:
        """The name of the main metric, see `main_metric`."""
        return main_metric(self.figures, self.scores)


def results_of(name: str, found: Evaluation) -> ModelResults:
    """What was just measured of a model, as `stored_results` reads it from a run folder."""
    return ModelResults(name, found.figures, found.rows, found.lower_is_better, found.conditions)


def not_comparable(figure: str, models: Sequence[ModelResults]) -> str | None:
    """Why the models can't be compared in a figure; None where they can."""
    first, first_ids = models[0], {row["id"] for row in models[0].scores[figure]}
    for model in models:
        rows = model.scores[figure]
        ids = {row["id"] for row in rows}
        if len(ids) < len(rows):
            return f"{model.name} has duplicate ids ({len(rows) - len(ids):,} rows too many)"
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
        names = listed([first.name, *other])
        return f"the tokens (or words) of the rows aren't the same in {names}, so it can't be compared"
    return None


def differing_conditions(models: Sequence[ModelResults]) -> Iterator[str]:
    """Conditions that differ between the models, as far as they are known."""
    for key in dict.fromkeys(key for m in models for key in m.conditions):
        values = [(m.name, m.conditions[key]) for m in models if key in m.conditions]
        said = [(n, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for n, v in values]
        if len({value for _, value in said}) > 1:
            yield f"{key} wasn't the same: {listed([f'{value} for {name}' for name, value in said])}."


def row_notes(models: Sequence[ModelResults], shared: Sequence[str], comparable: Sequence[str]) -> Iterator[str]:
    """Notes about figures that are left out, and about rows that weren't kept."""
    for figure in shared:
        if figure not in comparable:
            yield f"{figure} is left out: {not_comparable(figure, models)}."
            continue
        for model in models:
            rows, value = model.scores[figure], model.figures.get(figure)
            mean = interval([r["score"] for r in rows], [r.get("weight", 1) for r in rows]).mean
            if value is not None and mean is not None and not np.isclose(value, mean, rtol=1e-4, atol=1e-6):
                yield (
                    f"{figure} of {model.name} is {value:,.4g} over all rows that were evaluated; the value here is "
                    f"that of the {len(rows):,} rows that were kept."
                )
    for figure in dict.fromkeys(f for m in models for f in m.scores if f not in shared):
        lacking = [m.name for m in models if not m.scores.get(figure)]
        yield f"{figure} can't be compared: {listed(lacking)} {'has' if len(lacking) == 1 else 'have'} no rows of it."


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
