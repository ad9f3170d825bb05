"""What an evaluator gives back, and what it is given: the contract of every file beside this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gemma_tune.config import Config
from gemma_tune.config.eval import lower_is_better as lower_is_better
from gemma_tune.data.records import Record
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.transformers import Engine

# One row of a test: `id` (the same for every model), `score`, perhaps `weight` (tokens), and for people perhaps
# `prompt`, `wanted`, `answer`, `stopped`.
ScoredRow = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Attributes:
        figures: By name.
        rows: For those figures that are the mean of scores: the rows, by the figure's name.
        lower_is_better: Figures that are the better the lower they are, beside those whose name says so
            (`lower_is_better(name)`).
    """

    figures: dict[str, float]
    rows: dict[str, list[ScoredRow]] = field(default_factory=dict)
    lower_is_better: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Inputs:
    """What an evaluator may be made from, before a model is loaded.

    Attributes:
        cfg: The configuration.
        tokenizer: The model's tokenizer.
        held_out: The held-out rows, perhaps none.
        tests: The rows of `data.test_files` by name, perhaps none.
    """

    cfg: Config
    tokenizer: Any
    held_out: TokenizedRows
    tests: Mapping[str, Sequence[Record]]


class Evaluator(Protocol):
    """What `prepare(inputs)` of an evaluator's file gives.

    `prepare` raises UserError for whatever is wrong with settings and files, before a run begins.
    """

    def __call__(self, engine: Engine, limit: int | None = None) -> Outcome:
        """Asks the engine; at most `limit` rows are answered."""
        ...


def mean(rows: Sequence[ScoredRow]) -> float:
    """The mean of the rows' scores."""
    return float(sum(row["score"] for row in rows) / len(rows))
