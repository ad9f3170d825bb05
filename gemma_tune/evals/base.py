"""The inputs and the result of an evaluator: the contract of every file in this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from gemma_tune.config import Config
from gemma_tune.config.eval import lower_is_better as lower_is_better
from gemma_tune.data.records import Record
from gemma_tune.engines.base import Engine

if TYPE_CHECKING:
    from gemma_tune.data.tokenized import TokenizedRows
    from gemma_tune.evals.samples import RowAnswer

# One scored test row: `id` (the same for every model), `score`, optionally `weight` (tokens), and for people optionally
# `prompt`, `wanted`, `answer`, `stopped`, `media`.
ScoredRow = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of an evaluator.

    Attributes:
        figures: The metrics by name.
        rows: For metrics that are a mean of scores: the rows, by the metric's name.
        lower_is_better: Metrics where lower is better, in addition to those whose name says so
            (`lower_is_better(name)`).
    """

    figures: dict[str, float]
    rows: dict[str, list[ScoredRow]] = field(default_factory=dict)
    lower_is_better: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Inputs:
    """What an evaluator is made from, before a model is loaded.

    Attributes:
        cfg: The configuration.
        tokenizer: The model's tokenizer.
        held_out: The held-out rows; may be empty.
        tests: The rows of `data.test_files` by name; may be empty.
        limit: Rows to be answered at most, in an evaluation during training; None: no limit but `eval.max_samples`.
    """

    cfg: Config
    tokenizer: Any
    held_out: TokenizedRows
    tests: Mapping[str, Sequence[Record]]
    limit: int | None = None

    def answers(
        self, engine: Engine, records: Sequence[Record], max_new_tokens: int | None = None, name: str = "answers"
    ) -> list[RowAnswer]:
        """Greedy answers to the first rows, as texts and as token ids: for evaluators of the user's own.

        Args:
            engine: What the evaluator was given.
            records: Rows, of `tests` for example; at most `eval.max_samples` and `limit` of them are answered.
            max_new_tokens: Tokens of an answer at most; None: `eval.max_new_tokens`.
            name: For the progress bar.
        """
        from gemma_tune.evals.samples import row_answers  # comparing what was measured needs no tokenizer

        most = [n for n in (self.cfg.eval.max_samples, self.limit) if n is not None]
        asked = records[: min(most)] if most else records
        return row_answers(engine, asked, max_new_tokens or self.cfg.eval.max_new_tokens, name)


class Evaluator(Protocol):
    """What `prepare(inputs)` of an evaluator's file returns.

    `prepare` raises UserError for any problem with settings or files, before a run begins.
    """

    def __call__(self, engine: Engine, limit: int | None = None) -> Outcome:
        """Evaluates the engine's model on at most `limit` rows."""
        ...


def mean(rows: Sequence[ScoredRow]) -> float:
    """The mean of the rows' scores."""
    return float(sum(row["score"] for row in rows) / len(rows))
