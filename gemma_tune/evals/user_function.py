"""A user's own evaluators, `path/to/file.py:function`, and checks of what such a function returns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

from gemma_tune.config.own_functions import EVALUATOR
from gemma_tune.engines.base import Engine
from gemma_tune.errors import RunError, UserError
from gemma_tune.evals.base import Evaluator, Inputs, Outcome, ScoredRow
from gemma_tune.user_code import beside, failure, load_function, split


def prepare(reference: str, inputs: Inputs) -> Evaluator:
    """The user's function as an evaluator.

    Returns:
        An evaluator. It raises RunError, with file and line, if the function raises, or returns neither numbers by name
        nor an `Outcome` with rows that can be stored and compared.

    Raises:
        UserError: No such file or function, or one that can't be called so.
    """
    function = load_function(reference, "eval.evaluators", EVALUATOR)

    file, name = split(reference)
    code = getattr(function, "__code__", None)
    defined = f"{file.name}:{code.co_firstlineno}" if code else file.name

    def evaluate(engine: Engine, limit: int | None = None) -> Outcome:
        try:
            found = function(engine, replace(inputs, limit=limit))
        except (UserError, RunError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise RunError(beside(reference, failure(error, file), file)) from error
        try:
            return _checked(found)
        except (TypeError, ValueError) as error:
            raise RunError(f"{defined}: {name}: {error}.") from error

    return evaluate


def _checked(found: Any) -> Outcome:
    """What the function returned, as an outcome of plain numbers.

    Raises:
        TypeError: Something of another type; the message says what to return.
        ValueError: Rows that can't be stored and compared.
    """
    if not isinstance(found, Outcome):
        return Outcome(_numbers(found))
    figures = _numbers(found.figures)
    if strange := sorted(found.rows.keys() - figures.keys()):
        raise ValueError(f"it returned rows of {strange[0]}, but no metric of that name; add it to the figures")
    return replace(found, figures=figures, rows={name: _rows(name, rows) for name, rows in found.rows.items()})


def _numbers(figures: Any) -> dict[str, float]:
    """The metrics as Python numbers; NumPy's types are accepted, too."""
    if not isinstance(figures, Mapping):
        raise TypeError(
            f"it returned {type(figures).__name__}, not numbers by name (or an Outcome): return {{'name': number}}"
        )
    return {str(name): _number(f"{name}", value) for name, value in figures.items()}


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"it returned {type(value).__name__} as {name}, not a number; write float(…)")
    return int(value) if isinstance(value, Integral) else float(value)


def _rows(name: str, rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    found = []
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping) or not {"id", "score"} <= row.keys():
            raise ValueError(
                f"row {place} of {name} is not a mapping with an id and a score; answer.scored(…) makes one"
            )
        kept = {**row, "score": float(_number(f"{name}'s score", row["score"]))}
        if "weight" in row:
            kept["weight"] = _number(f"{name}'s weight", row["weight"])
        try:
            json.dumps(kept)
        except (TypeError, ValueError) as error:
            raise ValueError(f"row {place} of {name} can't be stored as JSON: {error}") from error
        found.append(kept)
    return found
