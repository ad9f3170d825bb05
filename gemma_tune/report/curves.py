"""The values of metrics.jsonl over the optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gemma_tune.evals.evaluation import is_share
from gemma_tune.page.charts import CURVE, Panel, Series
from gemma_tune.untrusted import read_lines

_FEW = 20  # losses up to which a running mean says no more than they do
_DRAWN = 800  # points of a line at most: of more, the lowest and the highest of each stretch
_COUNTS = ("_rows", "_tokens", "_left_out")  # how figures end that are no curve
_OF_TRAINING = {
    "completions/mean_length": "tokens of a completion", "grad_norm": "gradient norm", "learning_rate": "learning rate",
}  # fmt: skip


def read_panels(metrics: Path, loss: str = "loss") -> list[Panel]:
    """The losses first, then every figure that was measured often enough, then what else training says of itself.

    A panel has a series of `CURVE` points at least: values before and after alone stand in the tables.

    Args:
        metrics: metrics.jsonl; Transformers' lines of a training have an `epoch`, those of evaluations have none.
        loss: The title of the training loss, with its unit where it has one.
    """
    training: dict[str, dict[int, float]] = {}
    measured: dict[str, dict[int, float]] = {}
    if metrics.is_file():
        for line in read_lines(metrics):
            into = training if "epoch" in line else measured
            for name, value in line.items():
                if isinstance(value, int | float) and math.isfinite(value) and isinstance(line.get("step"), int):
                    into.setdefault(name, {})[line["step"]] = value  # the last one of a step: it is of all rows
    losses, held_out = _points(training.get("loss", {})), _points(measured.get("held_out_loss", {}))
    panels = []
    if losses:
        panels.append(Panel(loss, [*_training(losses), *_dots("held out", held_out)]))
    for name, values in measured.items():
        if name != "step" and not _is_count(name, list(values.values())):
            share = is_share(name, False)
            points = [(step, 100 * value if share else value) for step, value in _points(values)]
            panels.append(Panel(name, _dots(name, points), "%" * share))
    if rewards := _points(training.get("reward", {})):
        panels.insert(0, Panel("mean reward", _training(rewards)))
    for name, title in _OF_TRAINING.items():
        if losses and (points := _points(training.get(name, {}))):
            panels.append(Panel(title, [Series(title, thinned(points), "line")]))
    for name, values in training.items():
        if name.startswith("rewards/") and name.endswith("/mean") and (points := _points(values)):
            title = f"reward: {name.split('/')[1]}, its mean"
            panels.append(Panel(title, [Series(title, thinned(points), "line")]))
    return [panel for panel in panels if max(len(series.points) for series in panel.series) >= CURVE]


def running_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with its neighbours, a twentieth of all of them and five at least; fewer at the ends."""
    half = max(5, len(values) // 20) // 2
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    places = np.arange(len(values))
    reach = np.minimum(half, np.minimum(places, places[::-1]))  # as many on either side
    means = (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)
    return [float(mean) for mean in means]


def thinned(points: list[tuple[float, float]], most: int = _DRAWN) -> list[tuple[float, float]]:
    """The points, or of each stretch the lowest and the highest, so that no peak is lost."""
    if len(points) <= most:
        return points
    kept = []
    for part in np.array_split(np.arange(len(points)), most // 2):
        stretch = [points[i] for i in part]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def _training(losses: list[tuple[float, float]]) -> list[Series]:
    if len(losses) <= _FEW:
        return [Series("training", losses, "line")]
    means = running_mean([loss for _, loss in losses])
    mean = [(step, value) for (step, _), value in zip(losses, means, strict=True)]
    return [
        Series("training, as logged", thinned(losses), "faint"),
        Series("training, running mean", thinned(mean), "line"),
    ]


def _dots(name: str, points: list[tuple[float, float]]) -> list[Series]:
    return [Series(name, thinned(points), "dots")] if points else []


def _points(values: dict[int, float]) -> list[tuple[float, float]]:
    return sorted((float(step), float(value)) for step, value in values.items())


def _is_count(name: str, values: Sequence[float]) -> bool:
    """Whether it says how much was measured, not how well."""
    return name.endswith(_COUNTS) or (all(isinstance(value, int) for value in values) and len(set(values)) == 1)
