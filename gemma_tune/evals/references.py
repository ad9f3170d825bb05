"""Answers compared with several references: what `anls`, `vqa_accuracy` and `wer` have in common.

The references of a row are its `answers`: a text, a list of texts, a list of objects with the text under `answer` (as
VQA v2 has them), or an object with that list under `text` (SQuAD). A row without them has one: its last answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gemma_tune.chat import form_of
from gemma_tune.chat.calls import parse_answer
from gemma_tune.config.eval import REFERENCES
from gemma_tune.data.records import Record
from gemma_tune.data.row_fields import structure_in
from gemma_tune.engines.base import Engine
from gemma_tune.errors import UserError
from gemma_tune.evals.base import Evaluator, Inputs, Outcome, ScoredRow
from gemma_tune.evals.samples import sample_answers

# The score of an answer (without thinking and calls) and its weight (None: all rows weigh the same), from the
# answer, the references, and whether the answer ended by itself.
Judge = Callable[[str, list[str], bool], tuple[float, float | None]]
# What is wrong with the references of a row, or None.
Check = Callable[[list[str]], str | None]


def references_of(record: Record) -> list[str]:
    """The reference answers of a row, each as often as the row has it; empty where there is none.

    Raises:
        ValueError: `answers` holds something that is no text.
    """
    given = structure_in(record.row.get(REFERENCES))
    if isinstance(given, dict):
        given = given.get("text")
    texts = [_text(one) for one in (given if isinstance(given, list) else [given]) if one is not None]
    if not any(text.strip() for text in texts):
        texts = [record.answer]
    return texts if any(text.strip() for text in texts) else []


def _text(value: Any) -> str:
    """A reference as a text; a number counts as its text."""
    if isinstance(value, dict):
        value = value.get("answer")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{REFERENCES} holds {type(value).__name__}, and references are texts")
    return str(value)


def _checked(name: str, record: Record, check: Check) -> list[str]:
    """The references of a row.

    Raises:
        UserError: It has none, or none that can be compared.
    """
    where = f"data.test_files.{name}: {record.where}"
    try:
        found = references_of(record)
    except ValueError as error:
        raise UserError(f'{where}: {error}: write "{REFERENCES}": ["…", "…"].') from error
    if not found:
        raise UserError(
            f"{where}: there is no answer to compare with: neither a last answer nor a list under {REFERENCES!r}."
        )
    if problem := check(found):
        raise UserError(f"{where}: {problem}")
    return found


def prepare_scored(inputs: Inputs, figure: str, judge: Judge, check: Check = lambda found: None) -> Evaluator:
    """Answers every test row greedily and scores the answers against the rows' references.

    Where several evaluators do so, the answers are generated once.

    Args:
        inputs: The inputs of the evaluator.
        figure: The metric is called `<test>_<figure>`.
        judge: Scores an answer.
        check: Finds what is wrong with the references of a row.

    Returns:
        An evaluator that returns, for each of `data.test_files`, `<name>_<figure>` (the mean of the rows' scores by
        their weights), `<name>_stopped` and `<name>_rows`.

    Raises:
        UserError: A row without references, or with some that can't be compared.
    """
    cfg, form = inputs.cfg.eval, form_of(inputs.tokenizer)
    tests = {name: records[: cfg.max_samples] for name, records in inputs.tests.items()}
    wanted = {name: [_checked(name, record, check) for record in records] for name, records in tests.items()}

    def evaluate(engine: Engine, limit: int | None = None) -> Outcome:
        figures: dict[str, float] = {}
        rows: dict[str, list[ScoredRow]] = {}
        for name, records in tests.items():
            answered = sample_answers(engine, records[:limit], cfg.max_new_tokens, f"{name}: answers")
            for row, references in zip(answered, wanted[name], strict=False):
                text = parse_answer(row["answer"], form).text
                row["score"], weight = judge(text, references, row["stopped"])
                row["wanted"] = " | ".join(dict.fromkeys(references))
                if weight is not None:
                    row["weight"] = weight
            rows[f"{name}_{figure}"] = answered
            figures |= {
                f"{name}_{figure}": _mean(answered),
                f"{name}_stopped": sum(row["stopped"] for row in answered) / len(answered),
                f"{name}_rows": len(answered),
            }
        return Outcome(figures, rows)

    return evaluate


def _mean(rows: Sequence[ScoredRow]) -> float:
    """The mean of the scores by their weights."""
    return float(sum(row["score"] * row.get("weight", 1) for row in rows) / sum(row.get("weight", 1) for row in rows))
