"""Exact match: greedy answers to test rows, right where they make the calls (or say the words) that the row wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemma_tune.chat import ChatForm, form_of
from gemma_tune.chat.calls import begins_call, calls_of, parse_answer, same_calls
from gemma_tune.data.records import Record
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


def exact_match(
    model: Any, tokenizer: Any, records: Sequence[Record], max_new_tokens: int, batch_size: int, name: str
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Answers every row greedily and counts the right ones.

    Args:
        model: The model, or a PeftModel around it.
        tokenizer: Its tokenizer.
        records: Conversations.
        max_new_tokens: Tokens of an answer at most.
        batch_size: Rows of one pass.
        name: What the rows are called, for the figures and the progress bar.

    Returns:
        `<name>_exact_match` and `<name>_stopped` (shares of 1), `<name>_rows`; and for each row what
        `sample_answers` gives, with `right` (yes or no).
    """
    answers = sample_answers(model, tokenizer, records, max_new_tokens, batch_size, f"{name}: answers")
    form = form_of(tokenizer)
    for record, row in zip(records, answers, strict=True):
        row["right"] = "yes" if row["stopped"] == "yes" and is_right(record, row["answer"], form) else "no"
    n = len(records)
    figures = {
        f"{name}_exact_match": sum(a["right"] == "yes" for a in answers) / n,
        f"{name}_stopped": sum(a["stopped"] == "yes" for a in answers) / n,
        f"{name}_rows": n,
    }
    return figures, answers
