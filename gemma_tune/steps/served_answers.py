"""Whose answers a server gives: those of the run's trained model, or those of its base before tuning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_tune.chat import ChatForm, form_of
from gemma_tune.engines.served import same_answer_text
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.run.existing import run_of
from gemma_tune.untrusted import read_object

Answers = dict[tuple[str, str], str]  # by metric and row


@dataclass(frozen=True)
class ServedAnswers:
    """How many answers of a server are whose, of the rows that the run has answered, too.

    Attributes:
        run: The run folder.
        rows: Rows that the server and the trained model have answered.
        as_trained: Answers of the server that are the trained model's.
        changed: Rows on which tuning has changed the answer; 0 where nothing was measured before training.
        changed_as_trained: Of these, answers of the server that are the trained model's.
        changed_as_before: Of these, answers of the server that are those before tuning.
    """

    run: Path
    rows: int
    as_trained: int
    changed: int
    changed_as_trained: int
    changed_as_before: int

    def lines(self) -> list[str]:
        """What to say of them."""
        said = [f"Answers: {self.as_trained} of {self.rows} are those of the trained model of {self.run}."]
        if self.changed:
            said.append(
                f"Of the {self.changed} rows on which tuning has changed the answer, {self.changed_as_trained} are as "
                f"trained and {self.changed_as_before} as before tuning."
            )
        return said

    def failure(self) -> str | None:
        """What is wrong where the base, or another model, is served in place of the tuned one."""
        other = self.changed - self.changed_as_trained - self.changed_as_before
        if self.changed_as_before <= self.changed_as_trained and 2 * other > self.changed:
            return (
                f"neither the tuned model is served nor its base: of {self.changed} answers that tuning has changed, "
                f"{other} are of neither. Serve the adapter or export/merged of {self.run} with the chat template that "
                "it was tuned with, and ask that model's id (model.served_name)."
            )
        if self.changed_as_before <= self.changed_as_trained:
            return None
        return (
            f"the base is served, not the tuned model: of {self.changed} answers that tuning has changed, "
            f"{self.changed_as_before} are as before tuning and {self.changed_as_trained} as trained. Serve the "
            f"adapter or export/merged of {self.run}, and ask that model's id (model.served_name)."
        )


def served_answers(model: str, tokenizer: Any, found: Evaluation) -> ServedAnswers | None:
    """Compares a server's answers with those that a run has stored; None where there is no run, or no such rows.

    Args:
        model: `model.model_name_or_path`.
        tokenizer: The tokenizer, with its chat template.
        found: What the server was measured with.
    """
    if (run := run_of(model)) is None:
        return None
    form, served = form_of(tokenizer), dict(_answers(found.rows))
    trained, before = (_stored(run / "eval" / f"{when}.json") for when in ("after", "before"))
    rows = served.keys() & trained.keys()
    if not rows:
        return None
    changed = {key for key in rows & before.keys() if not same_answer_text(trained[key], before[key], form)}
    as_trained = _same(rows, served, trained, form)
    return ServedAnswers(
        run,
        len(rows),
        len(as_trained),
        len(changed),
        len(changed & as_trained),
        len(_same(changed, served, before, form)),
    )


def _same(rows: set[tuple[str, str]], one: Answers, other: Answers, form: ChatForm) -> set[tuple[str, str]]:
    return {key for key in rows if same_answer_text(one[key], other[key], form)}


def _answers(rows: Any) -> Iterator[tuple[tuple[str, str], str]]:
    for metric, scored in rows.items():
        for row in scored:
            if isinstance(answer := row.get("answer"), str):
                yield (metric, str(row["id"])), answer


def _stored(file: Path) -> Answers:
    try:
        return dict(_answers(read_object(file)["rows"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
