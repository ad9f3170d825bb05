"""Greedy answers to test rows, compared with the reference answer: its tool calls, its words or its number."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from gemma_tune.chat import ChatForm, form_of
from gemma_tune.chat.calls import calls_of, content_text, parse_answer, same_calls
from gemma_tune.config.eval import AnswersConfig
from gemma_tune.data.records import Record
from gemma_tune.engines.base import Engine
from gemma_tune.errors import UserError
from gemma_tune.evals.base import Evaluator, Inputs, Outcome, ScoredRow, mean
from gemma_tune.evals.no_call import WITHOUT_CALL, is_right_without_call
from gemma_tune.evals.samples import sample_answers
from gemma_tune.rewards.answers import final_answer, same_answer


def is_right(record: Record, answer: str, form: ChatForm | None = None) -> bool:
    """Whether an answer matches the reference answer of its row.

    Calls are compared as data, in any order: names, and arguments with their types. If the user asks for something
    that no tool does (the row has tools and no call), other words may be right, too (`no_call.RULE`). Otherwise the
    words must be equal. Thinking is ignored.

    Args:
        record: A conversation; its last answer is the reference.
        answer: The answer, as `answer_text` returns it.
        form: The chat template of the answer; None detects it from the tokens in the answer.
    """
    wanted = (record.messages or [])[len(record.prompt)]
    text, made, _ = parse_answer(answer, form)
    if made or wanted.get("tool_calls"):
        return same_calls(made, calls_of(wanted))
    content = wanted["content"]
    words = content if isinstance(content, str) else "".join(part["text"].strip() for part in content)
    if calls_nothing(record):
        return is_right_without_call(text, words)
    return text == words.strip()


def calls_nothing(record: Record) -> bool:
    """Whether tools are at hand, the user asks, and the right answer calls none."""
    wanted = (record.messages or [])[len(record.prompt)]
    return bool(record.tools) and not wanted.get("tool_calls") and record.prompt[-1]["role"] == "user"


def answers_agree(wanted: str, answer: str) -> bool:
    """Whether two texts have the same answer, as found and compared by `reward.math` but without computing formulas."""
    expected, given = final_answer(wanted), final_answer(answer)
    return expected is not None and given is not None and same_answer(expected, given)


def last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The last match of the pattern, or its first group if it has groups; None without a match."""
    finds = list(pattern.finditer(text))
    return (finds[-1].group(1) if pattern.groups else finds[-1].group()) if finds else None


def _judge(cfg: AnswersConfig, form: ChatForm) -> Callable[[Record, ScoredRow], bool]:
    """Decides whether an answer is right; numbers and patterns are searched outside of thinking and calls."""

    def text(answer: str) -> str:
        return parse_answer(answer, form).text

    if cfg.match == "number":
        return lambda record, row: answers_agree(text(row["wanted"]), text(row["answer"]))
    if cfg.match == "regex":
        pattern = re.compile(cfg.regex or "")
        return lambda record, row: (
            (f := last_match(pattern, text(row["answer"]))) is not None
            and f == last_match(pattern, text(row["wanted"]))
        )
    return lambda record, row: is_right(record, row["answer"], form)


def _check(name: str, records: Sequence[Record], cfg: AnswersConfig) -> None:
    """Raises UserError for a row whose reference answer can't be compared."""
    for record in records:
        if len(record.prompt) == len(record.messages or ()):
            raise UserError(f"data.test_files.{name}: {record.where} has no answer to compare with.")
        wanted = content_text((record.messages or [])[len(record.prompt)])
        if cfg.match == "number" and not any(map(str.isdigit, final_answer(wanted) or "")):
            raise UserError(
                f"data.test_files.{name}: {record.where}: the answer holds no number, or several, and "
                "eval.answers.match=number compares one; use exact_match, or fix the row."
            )
        if cfg.match == "regex" and last_match(re.compile(cfg.regex or ""), wanted) is None:
            raise UserError(
                f"data.test_files.{name}: {record.where}: eval.answers.regex finds nothing in the reference "
                "answer; fix one of the two."
            )


def prepare(inputs: Inputs) -> Evaluator:
    """Answers every test row greedily and counts right answers; an answer that was cut off is wrong.

    Returns:
        An evaluator that returns, for each of `data.test_files`, `<name>_<eval.answers.match>` and `<name>_stopped`
        (shares of 1) and `<name>_rows`.

    Raises:
        UserError: A row has no reference answer, or one that can't be compared.
    """
    cfg, form = inputs.cfg.eval, form_of(inputs.tokenizer)
    tests = {name: records[: cfg.max_samples] for name, records in inputs.tests.items()}
    for name, records in tests.items():
        _check(name, records, cfg.answers)
    right = _judge(cfg.answers, form)

    def evaluate(engine: Engine, limit: int | None = None) -> Outcome:
        figures: dict[str, float] = {}
        rows: dict[str, list[ScoredRow]] = {}
        for name, records in tests.items():
            asked = records[:limit]
            answered = sample_answers(engine, asked, cfg.max_new_tokens, f"{name}: answers")
            for record, row in zip(asked, answered, strict=True):
                row["score"] = float(row["stopped"] and right(record, row))
                if cfg.answers.match == "exact_match" and calls_nothing(record):
                    row[WITHOUT_CALL] = True
            figure = f"{name}_{cfg.answers.match}"
            rows[figure] = answered
            figures |= {
                figure: mean(answered),
                f"{name}_stopped": sum(row["stopped"] for row in answered) / len(answered),
                f"{name}_rows": len(answered),
            }
        return Outcome(figures, rows)

    return evaluate
