"""The prompt and reference answer of a record, and a model's answer to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gemma_tune.chat import render_chat, render_prompt, render_text
from gemma_tune.chat.calls import answer_text, content_text
from gemma_tune.data.records import Record
from gemma_tune.data.split import digest
from gemma_tune.engines.base import Engine


def row_ids(records: Sequence[Record]) -> list[str]:
    """An id for each row: a hash of its content, with a counter for equal rows."""
    seen: Counter[int] = Counter()
    ids = []
    for record in records:
        number = digest(record)
        ids.append(f"{number:016x}" + (f"-{seen[number]}" if seen[number] else ""))
        seen[number] += 1
    return ids


def prompt_ids(tokenizer: Any, record: Record) -> list[int]:
    """Token ids of a record's prompt: a conversation up to its last answer, or the first half of a text."""
    if record.messages is not None:
        return render_prompt(tokenizer, record.prompt, record.tools, record.thinking)
    ids = render_text(tokenizer, record.text or "").input_ids
    return ids[: max(1, len(ids) // 2)]


def full_ids(tokenizer: Any, record: Record) -> list[int]:
    """Token ids of a record up to and including the answer after `prompt_ids`."""
    if record.messages is None:
        return render_text(tokenizer, record.text or "").input_ids
    return render_chat(tokenizer, record.messages[: len(record.prompt) + 1], record.tools).input_ids


def asked_text(tokenizer: Any, record: Record) -> str:
    """The prompt for people: the last message before the answer, or the beginning of a text."""
    if record.messages is None:
        return str(tokenizer.decode(prompt_ids(tokenizer, record), skip_special_tokens=True))
    return content_text(record.prompt[-1])


def sample_answers(
    engine: Engine, records: Sequence[Record], max_new_tokens: int, name: str = "answers"
) -> list[dict[str, Any]]:
    """Greedy answers to the records' prompts.

    Returns:
        For each record `id`, `prompt`, `wanted`, `answer` (as `answer_text` returns them) and `stopped` (whether it
        ended with a stop token). A wanted answer that is labelled as a bad one says so.
    """
    tokenizer = engine.tokenizer
    prompts = [prompt_ids(tokenizer, r) for r in records]
    answers = engine.answers(prompts, max_new_tokens, name)
    whole = [full_ids(tokenizer, r) for r in records]
    return [
        {
            "id": name,
            "prompt": asked_text(tokenizer, r),
            "wanted": "labelled bad: " * (r.desirable is False) + answer_text(tokenizer, w[len(p) :]),
            "answer": answer_text(tokenizer, a),
            "stopped": bool(a) and a[-1] in engine.stops,
        }
        for name, r, p, a, w in zip(row_ids(records), records, prompts, answers, whole, strict=True)
    ]
