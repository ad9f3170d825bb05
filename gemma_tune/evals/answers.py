"""Greedy answers to test rows, right where they make the calls (or say the words, or the number) that the row wants."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal

from gemma_tune.chat import ChatForm, form_of
from gemma_tune.chat.calls import begins_call, calls_of, content_text, parse_answer, same_calls
from gemma_tune.config.eval import AnswersConfig
from gemma_tune.data.records import Record
from gemma_tune.engines.transformers import Engine
from gemma_tune.errors import UserError
from gemma_tune.evals.base import Evaluator, Inputs, Outcome, ScoredRow, mean
from gemma_tune.evals.samples import sample_answers


def is_right(record: Record, answer: str, form: ChatForm | None = None) -> bool:
    """Whether an answer is what the row wants.

    Calls are compared as data, in any order: names, and arguments with their types. Where the user asks for what no
    tool does (the row has tools and wants no call), any words are right that aren't, and don't begin as, a call.
    Everywhere else the words must be the row's. Thinking doesn't count.

    Args:
        record: A conversation; its last answer is the wanted one.
        answer: The answer, as `answer_text` gives it.
        form: The form of the answer; None tells it by the tokens in it.
    """
    wanted = (record.messages or [])[len(record.prompt)]
    text, made, _ = parse_answer(answer, form)
    if made or wanted.get("tool_calls"):
        return same_calls(made, calls_of(wanted))
    if record.tools and record.prompt[-1]["role"] == "user":
        return bool(text) and not begins_call(text)
    content = wanted["content"]
    words = content if isinstance(content, str) else "".join(part["text"].strip() for part in content)
    return text == words.strip()


# A minus behind a letter, a digit or a bracket is none (5-10), nor is a dot there a decimal point (No.5).
_NUMBER = re.compile(
    r"(?:(?<![\w)\]])-)?"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
    r"(?:[eE][+-]?\d{1,3}(?!\w))?"
)


def numbers(text: str) -> list[Decimal]:
    """The numbers in a text: `-3`, `1,200`, `.5`, `1e6`; `5-10` are two."""
    return [Decimal(n.replace(",", "")) for n in _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))]


def same_number(wanted: str, answer: str) -> bool:
    """Whether the last numbers of both are equal: `#### 1,200` is `It costs 1200.0 dollars.`"""
    a, b = numbers(wanted), numbers(answer)
    return bool(a and b) and a[-1] == b[-1]


def found(pattern: re.Pattern[str], text: str) -> str | None:
    """The last find of the pattern, its first group where it has groups; None where there is none."""
    finds = list(pattern.finditer(text))
    return (finds[-1].group(1) if pattern.groups else finds[-1].group()) if finds else None


def _judge(cfg: AnswersConfig, form: ChatForm) -> Callable[[Record, ScoredRow], bool]:
    """What decides whether an answer is right; thinking and calls aren't looked at for numbers and finds."""

    def text(answer: str) -> str:
        return parse_answer(answer, form).text

    if cfg.match == "number":
        return lambda record, row: same_number(text(row["wanted"]), text(row["answer"]))
    if cfg.match == "regex":
        pattern = re.compile(cfg.regex or "")
        return lambda record, row: (
            (f := found(pattern, text(row["answer"]))) is not None and f == found(pattern, text(row["wanted"]))
        )
    return lambda record, row: is_right(record, row["answer"], form)


def _check(name: str, records: Sequence[Record], cfg: AnswersConfig) -> None:
    """Raises UserError where a row lacks what its answer is to be held against."""
    for record in records:
        if len(record.prompt) == len(record.messages or ()):
            raise UserError(f"data.test_files.{name}: {record.where} has no answer to compare with.")
        wanted = content_text((record.messages or [])[len(record.prompt)])
        if cfg.match == "number" and not numbers(wanted):
            raise UserError(
                f"data.test_files.{name}: {record.where}: the answer holds no number, and eval.answers.match=number "
                "compares numbers; use exact_match, or mend the row."
            )
        if cfg.match == "regex" and found(re.compile(cfg.regex or ""), wanted) is None:
            raise UserError(
                f"data.test_files.{name}: {record.where}: eval.answers.regex finds nothing in the wanted answer; "
                "mend one of the two."
            )


def prepare(inputs: Inputs) -> Evaluator:
    """Answers every test row greedily and counts the right ones; one that was cut off isn't right, whatever it says.

    Returns:
        An evaluator that gives, for each of `data.test_files`, `<name>_<eval.answers.match>` and `<name>_stopped`
        (shares of 1) and `<name>_rows`.

    Raises:
        UserError: A row has no answer, or none that can be compared.
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
            figure = f"{name}_{cfg.answers.match}"
            rows[figure] = answered
            figures |= {
                figure: mean(answered),
                f"{name}_stopped": sum(row["stopped"] for row in answered) / len(answered),
                f"{name}_rows": len(answered),
            }
        return Outcome(figures, rows)

    return evaluate
