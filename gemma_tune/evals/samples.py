"""The prompt and reference answer of a record, and a model's answer to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from gemma_tune.chat import render_chat, render_prompt, render_text
from gemma_tune.chat.answer_text import answer_text
from gemma_tune.chat.calls import content_text
from gemma_tune.chat.media import media_in
from gemma_tune.data.records import Record
from gemma_tune.data.split import digest
from gemma_tune.engines.base import Dialogue, Engine
from gemma_tune.engines.served import ServedEngine
from gemma_tune.errors import UserError


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


@dataclass(frozen=True)
class RowAnswer:
    """A greedy answer to the prompt of a row, as texts and as token ids.

    Attributes:
        record: The row.
        id: The same for every model: a hash of the row's content, with a counter for equal rows.
        prompt: The last message before the answer, or the beginning of a text.
        wanted: The reference answer; one that is labelled as a bad one says so.
        text: The answer, with the tokens that mark calls and thinking where its chat template has them.
        stopped: Whether it ended with a stop token; False if it was cut off.
        prompt_ids: Token ids of the whole prompt.
        ids: Token ids of the answer, the stop token included.
    """

    record: Record
    id: str
    prompt: str
    wanted: str
    text: str
    stopped: bool
    prompt_ids: list[int]
    ids: list[int]

    def scored(self, score: float) -> dict[str, Any]:
        """The row of a metric, for `Outcome.rows`: stored and compared between models."""
        return {**self.row(), "score": float(score)}

    def row(self) -> dict[str, Any]:
        """What is stored of it: `id`, `prompt`, `wanted`, `answer`, `stopped`.

        A prompt with images, sounds or videos has `media`, too: `kind` and `path` of each, for people.
        """
        texts = {"prompt": self.prompt, "wanted": self.wanted, "answer": self.text}
        media = [{"kind": part["type"], "path": part[part["type"]]} for part in media_in(self.record.prompt)]
        return {"id": self.id, **texts, "stopped": self.stopped, **({"media": media} if media else {})}


def record_replies(
    engine: Engine, records: Sequence[Record], max_new_tokens: int, name: str
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the records' prompts, and of greedy answers to them.

    Raises:
        UserError: A row of plain text, which a server has no conversation for.
    """
    prompts = [prompt_ids(engine.tokenizer, record) for record in records]
    if not isinstance(engine, ServedEngine):
        return prompts, engine.answers(prompts, max_new_tokens, name)
    if text := next((record for record in records if record.messages is None), None):
        raise UserError(f"{text.where}: this row is plain text, and a server is asked conversations alone.")
    asked = [Dialogue(record.prompt, record.tools, record.thinking) for record in records]
    return prompts, engine.replies(asked, max_new_tokens, name)


def dialogue_replies(engine: Engine, dialogues: Sequence[Dialogue], max_new_tokens: int, name: str) -> list[list[int]]:
    """Token ids of greedy answers to conversations that are no records."""
    if isinstance(engine, ServedEngine):
        return engine.replies(dialogues, max_new_tokens, name)
    prompts = [render_prompt(engine.tokenizer, d.messages, d.tools, d.thinking) for d in dialogues]
    return engine.answers(prompts, max_new_tokens, name)


# Answers by engine, rows and number of tokens, with the rows, so that their identities stay theirs.
Answered = dict[tuple[int, int, tuple[int, ...]], tuple[Sequence[Record], list[RowAnswer]]]
_MADE: ContextVar[Answered | None] = ContextVar("_MADE", default=None)


@contextmanager
def answered_once(made: Answered) -> Iterator[None]:
    """Within it, answers of an engine to the same rows are generated once; its model must stay the same.

    Args:
        made: The answers so far; new ones are added.
    """
    before = _MADE.set(made)
    try:
        yield
    finally:
        _MADE.reset(before)


def row_answers(
    engine: Engine, records: Sequence[Record], max_new_tokens: int, name: str = "answers"
) -> list[RowAnswer]:
    """Greedy answers to the records' prompts, in their order; `name` is for the progress bar."""
    key, made = (id(engine), max_new_tokens, tuple(map(id, records))), _MADE.get()
    if made is None:
        return _row_answers(engine, records, max_new_tokens, name)
    if key not in made:
        made[key] = (records, _row_answers(engine, records, max_new_tokens, name))
    return list(made[key][1])


def _row_answers(engine: Engine, records: Sequence[Record], max_new_tokens: int, name: str) -> list[RowAnswer]:
    tokenizer = engine.tokenizer
    prompts, answers = record_replies(engine, records, max_new_tokens, name)
    whole = [full_ids(tokenizer, r) for r in records]
    return [
        RowAnswer(
            record=r,
            id=row_id,
            prompt=asked_text(tokenizer, r),
            wanted="labelled bad: " * (r.desirable is False) + answer_text(tokenizer, w[len(p) :]),
            text=answer_text(tokenizer, a),
            stopped=bool(a) and a[-1] in engine.stops,
            prompt_ids=p,
            ids=a,
        )
        for row_id, r, p, a, w in zip(row_ids(records), records, prompts, answers, whole, strict=True)
    ]


def sample_answers(
    engine: Engine, records: Sequence[Record], max_new_tokens: int, name: str = "answers"
) -> list[dict[str, Any]]:
    """Greedy answers to the records' prompts, as `RowAnswer.row` gives them."""
    return [answer.row() for answer in row_answers(engine, records, max_new_tokens, name)]
