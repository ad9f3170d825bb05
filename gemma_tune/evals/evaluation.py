"""Runs the evaluators of `eval=…` together at one point in time."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_tune.config import Config
from gemma_tune.config.eval import EVALUATORS, ON_ANSWERS
from gemma_tune.config.path_keys import read_paths
from gemma_tune.data.records import Record
from gemma_tune.engines.base import Engine
from gemma_tune.errors import RunError, UserError
from gemma_tune.evals import lm_eval_tasks, user_function
from gemma_tune.evals.base import Evaluator, Inputs, ScoredRow, lower_is_better
from gemma_tune.evals.kept_media import keep_media
from gemma_tune.evals.samples import Answered, answered_once, sample_answers
from gemma_tune.neighbours import with_neighbours
from gemma_tune.process_failures import raise_if_ended, together
from gemma_tune.run.manifest import write_json
from gemma_tune.run.paths import reward_model_of

if TYPE_CHECKING:
    from gemma_tune.data.tokenized import TokenizedRows

_SHARES = (
    "exact_match", "_number", "_regex", "stopped", "_accuracy", "_accuracy_per_token", "agreement", "_acc", "_acc_norm",
    "_anls", "_wer", "top1", "same_answers", "_math", "_exact", "_format", "_code", "_tool_call", "_json_schema",
    "_reasoning_gym", "_failed",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """The results of all evaluators at one point in time.

    Attributes:
        figures: The metrics by name.
        rows: All test rows behind a metric, by the metric's name; see `ScoredRow`.
        answers: A few to read, each with `prompt`, `wanted`, `answer` and `stopped`.
        failures: Error messages by evaluator (its metrics are missing), or by metric if its value is NaN or infinite
            (the metric is missing).
        not_finite: Names of the latter metrics.
        lower_is_better: The metrics where lower is better, sorted.
        conditions: What the metrics depend on beside model and rows, by configuration key.
    """

    figures: dict[str, float] = field(default_factory=dict)
    rows: dict[str, list[ScoredRow]] = field(default_factory=dict)
    answers: list[ScoredRow] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    lower_is_better: list[str] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> str | None:
        """The name of the main metric, see `main_metric`."""
        return main_metric(self.figures, self.rows)

    def save(self, folder: Path, when: str) -> None:
        """Writes `eval/<when>.json`; media that rows hold as bytes are kept in `eval/media`, and named there.

        Raises:
            RunError: The file can't be written; no partial file is left.
        """
        file = folder / f"{when}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            keep_media(chain(self.answers, *self.rows.values()), folder / "media")
            write_json(file, vars(self))
        except OSError as error:
            raise RunError(f"{file}: the results can't be written ({error.strerror}).") from error


def main_metric(figures: Iterable[str], rows: Iterable[str]) -> str | None:
    """The name of the main metric: that of the first test, else the held-out loss, else any.

    Args:
        figures: The names of all metrics.
        rows: The names of those with rows.
    """
    tests = [name for name in rows if name != "held_out_loss"]
    return next(iter([*tests, *figures]), None)


def as_text(name: str, value: float | None) -> str:
    """A metric for people: shares as percent, counts as integers, others with four digits; a dash for None."""
    if value is None:
        return "–"
    if name.endswith(_SHARES):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def is_share(name: str, binary: bool) -> bool:
    """Whether a metric is written in percent: right answers, or what its name says is a share."""
    return binary or name.endswith(_SHARES)


def prepare_evaluators(
    cfg: Config, tokenizer: Any, held_out: TokenizedRows, tests: Mapping[str, Sequence[Record]]
) -> dict[str, Evaluator]:
    """The evaluators that a run needs, by name.

    Args:
        cfg: `eval`, and whether anything is measured while training.
        tokenizer: The model's tokenizer.
        held_out: Held-out rows; may be empty.
        tests: Test rows by name; may be empty.

    Raises:
        UserError: Settings or files that an evaluator can't use.
    """
    inputs = Inputs(cfg, tokenizer, held_out, tests)
    return {name: _prepared(name, inputs) for name in cfg.evaluator_names}


def _prepared(name: str, inputs: Inputs) -> Evaluator:
    if name in EVALUATORS:
        evaluator: Evaluator = importlib.import_module(f"gemma_tune.evals.{name}").prepare(inputs)
        return evaluator
    return user_function.prepare(name, inputs)


def files_of(cfg: Config) -> list[Path]:
    """The files that the evaluators and rewards of a run read beside those of `data`, and folders of other models.

    Raises:
        UserError: As `prepare`.
    """
    found: list[Path] = []
    for path in (*read_paths(cfg, "eval"), *read_paths(cfg, "reward")):
        place = reward_model_of(path.name)
        if path.key == "eval.lm_eval.include_path":
            found += lm_eval_tasks.task_files(place)
        elif path.key == "eval.kl.reference":
            from gemma_tune.evals.kl import reference_of  # loads torch

            _, source = reference_of(cfg)
            found += [path for path in (source.folder, source.adapter) if path]
        elif path.kind == "function":
            found += with_neighbours(place)
        elif path.kind != "model" or place.is_dir():
            found.append(place)
    return list(dict.fromkeys(found))


def evaluate(evaluators: Mapping[str, Evaluator], engine: Engine, limit: int | None = None) -> Evaluation:
    """Runs evaluators one after the other; if one fails, the error is recorded and the others still run.

    Greedy answers to the same rows are generated once for all of them. A metric that is NaN or infinite, or has such a
    row, is recorded as a failure and left out, too.

    Args:
        evaluators: The evaluators by name.
        engine: The engine to evaluate.
        limit: Rows per evaluator at most.
    """
    figures: dict[str, float] = {}
    rows: dict[str, list[ScoredRow]] = {}
    failures: dict[str, str] = {}
    lower: set[str] = set()
    not_finite: list[str] = []
    made: Answered = {}
    for name, evaluator in evaluators.items():
        try:
            with answered_once(made):
                outcome = together(partial(evaluator, engine, limit))
        except Exception as error:
            raise_if_ended(error)
            failures[name] = _failed(f"the evaluator {name}", error)
            continue
        for figure, value in outcome.figures.items():
            scores = [row["score"] for row in outcome.rows.get(figure, ())]
            if strange := [v for v in (value, *scores) if not math.isfinite(v)]:
                failures[figure] = (
                    f"{'it' if strange[0] is value else 'the score of a row'} is {strange[0]}, not a finite number"
                )
                not_finite.append(figure)
                print(f"warning: {figure} is left out: {failures[figure]}", file=sys.stderr)
                continue
            figures[figure] = value
            if figure in outcome.rows:
                rows[figure] = outcome.rows[figure]
            if figure in outcome.lower_is_better or lower_is_better(figure):
                lower.add(figure)
    return Evaluation(figures, rows, failures=failures, not_finite=not_finite, lower_is_better=sorted(lower))


def _failed(what: str, error: Exception) -> str:
    """Prints a warning about a failure and returns its reason."""
    message = " ".join(str(error).split())[:500] or type(error).__name__
    reason = message if isinstance(error, UserError | RunError) else f"{type(error).__name__}: {message}"
    print(f"warning: {what} failed, and the run goes on: {reason}", file=sys.stderr)
    return reason


def with_samples(evaluation: Evaluation, engine: Engine, cfg: Config, held_out: TokenizedRows) -> Evaluation:
    """Adds a few answers to read: those of a test, else to held-out prompts; none if answering fails."""
    n = cfg.eval.num_samples
    answered = [rows for rows in evaluation.rows.values() if rows and "answer" in rows[0]]
    if answered:
        return replace(evaluation, answers=answered[0][:n])
    try:
        answers = together(partial(sample_answers, engine, held_out.records[:n], cfg.eval.max_new_tokens))
    except Exception as error:
        raise_if_ended(error)
        return replace(evaluation, failures=evaluation.failures | {"samples": _failed("answering samples", error)})
    return replace(evaluation, answers=answers)


def conditions_of(cfg: Config, names: Sequence[str]) -> dict[str, Any]:
    """What the metrics of these evaluators depend on beside model and rows, by configuration key."""
    e, chosen = cfg.eval, set(names)
    found: dict[str, Any] = {"model.dtype": cfg.model.dtype, "model.load_in_4bit": cfg.model.load_in_4bit}
    if chosen & {"held_out_loss", "kl", "preference"}:
        found["train.max_length"] = cfg.train.max_length
    if chosen & {*ON_ANSWERS, "tool_calls"}:
        found["eval.max_new_tokens"] = e.max_new_tokens
    if "rewards" in chosen:
        found["eval.max_new_tokens"] = cfg.answer_tokens
    if chosen & {*ON_ANSWERS, "rewards"}:
        found["data.enable_thinking"] = cfg.data.enable_thinking
    if "answers" in chosen:
        found["eval.answers.match"] = e.answers.match
        if e.answers.match == "regex":
            found["eval.answers.regex"] = e.answers.regex
    for name in (n for n in ("vqa_accuracy", "wer") if n in chosen):
        found[f"eval.{name}.normalizer"] = getattr(e, name).normalizer
    if "kl" in chosen:
        found["eval.kl.reference"] = e.kl.reference
    if "lm_eval" in chosen:
        found["eval.lm_eval.num_fewshot"] = e.lm_eval.num_fewshot
        found["eval.lm_eval.apply_chat_template"] = e.lm_eval.apply_chat_template
    if "long_context" in chosen:
        found["eval.long_context.max_new_tokens"] = e.long_context.max_new_tokens
    return found
