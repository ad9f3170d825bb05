"""Preference pairs as token ids: rendered with our templates, cut, counted, and stored for TRL's trainers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Features

from gemma_tune.chat import Rendered
from gemma_tune.chat.media import Media
from gemma_tune.config import DataConfig
from gemma_tune.data.answers import (
    IDS,
    MEDIA_COLUMN,
    AnswerRows,
    StoredRows,
    answer_row,
    find_answers,
    load_answers,
    render_answers,
    stored_answer,
)
from gemma_tune.data.records import BadRow, Record

# TRL's columns: DPO joins the prompt to each answer, the reward trainer takes whole conversations and no prompt.
_FEATURES = Features({"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS})


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        prompt: Token ids of the prompt, `<bos>` first, [P].
        chosen: Token ids of the better answer, its stop token last, [C].
        rejected: Token ids of the worse answer, [R].
        media: The prompt's images, sounds and videos, as those of `Rendered`.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    media: Media = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Number of tokens of the prompt and the longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    def cut(self, max_length: int) -> Pair:
        """The pair cut to `max_length` tokens: answers lose their end, and the prompt too if it alone is longer.

        Then nothing is left to learn from, so no medium is cut.
        """
        left = max(0, max_length - len(self.prompt))
        return Pair(self.prompt[:max_length], self.chosen[:left], self.rejected[:left], self.media)

    @property
    def sides(self) -> tuple[Rendered, ...]:
        """Both conversations, the chosen one first; only the answers have labels."""
        return tuple(answer_row(self.prompt, answer, self.media) for answer in (self.chosen, self.rejected))


def render_pair(record: Record, tokenizer: Any) -> Pair:
    """A pair as the model sees it, not cut.

    Raises:
        BadRow: The record has no rejected answer, or the chat template can't render it or renders both answers alike.
    """
    if record.messages is None or record.rejected is None:
        raise BadRow(f"{record.where}: this row is not a pair of answers; preferences need chosen and rejected.")
    answers = [record.messages[len(record.prompt) :], record.rejected]
    prompt, (chosen, rejected) = render_answers(record, answers, tokenizer)
    if chosen == rejected:
        raise BadRow(
            f"{record.where}: the chat template renders chosen and rejected alike; there is nothing to prefer."
        )
    return Pair(prompt, chosen, rejected, prompt.media)


@dataclass
class Pairs(AnswerRows):
    """`AnswerRows` of pairs; `rendered` holds the chosen conversations.

    Attributes:
        for_reward: Whether a reward model is trained on them. It takes whole conversations, so in `dataset` each answer
            begins with its prompt. And it reads its score at the end of an answer, so pairs longer than max_length are
            dropped instead of cut.
    """

    fits: str = "pairs fits into"
    for_reward: bool = False

    def pairs(self, records: Iterable[Record], tokenizer: Any, max_length: int) -> Iterator[Pair]:
        """Renders pairs, cuts or drops those longer than `max_length`, and counts."""

        def fit(pair: Pair) -> tuple[Pair | None, bool]:
            if pair.longest <= max_length:
                return pair, False
            if self.for_reward:
                return None, False
            pair = pair.cut(max_length)
            if pair.chosen == pair.rejected:  # what they differ in was cut, or the prompt alone fills the row
                return None, False
            return pair, True

        def render(record: Record) -> Pair:
            pair = render_pair(record, tokenizer)
            if self.for_reward and pair.media:
                kind = pair.media[0]["kind"]
                raise BadRow(f"{record.where}: this row has an {kind}, and recipe=reward_model knows text alone.")
            return pair

        return self.keep(records, render, fit)

    def store(self, records: Iterable[Record], tokenizer: Any, max_length: int) -> None:
        """See `AnswerRows`."""

        def rows() -> Iterator[dict[str, Any]]:
            for pair in self.pairs(records, tokenizer, max_length):
                start = pair.prompt if self.for_reward else []
                answers = {"chosen_ids": [*start, *pair.chosen], "rejected_ids": [*start, *pair.rejected]}
                yield {"prompt_ids": pair.prompt, **answers, MEDIA_COLUMN: pair.media}

        self.write(_FEATURES, rows())
        self.rendered = StoredRows(len(self.dataset), partial(_chosen, self.dataset, self.for_reward))

    @property
    def why_dropped(self) -> str:
        """See `TokenizedRows`."""
        if self.for_reward:
            return "pairs are longer than train.max_length and were dropped"
        return "pairs don't differ within train.max_length and were dropped"


def _chosen(dataset: Any, whole: bool, number: int) -> Rendered:
    """The chosen conversation of a stored pair; `whole` says whether its answer begins with the prompt."""
    row = dataset[number]
    return stored_answer(row, row["chosen_ids"][len(row["prompt_ids"]) if whole else 0 :])


def load_pairs(
    data: DataConfig, tokenizer: Any, max_length: int, seed: int, for_reward: bool = False
) -> tuple[Pairs, Pairs]:
    """The rendered pairs to train on and those held out (perhaps none); see `load_answers`.

    In pairs longer than `max_length` both answers are cut at their end, as in TRL; pairs whose answers don't differ
    after that are dropped. `for_reward` as for `Pairs`.

    Raises:
        UserError: As there.
    """
    return load_answers(lambda skip: Pairs(skip_refused=skip, for_reward=for_reward), data, tokenizer, max_length, seed)


find_pairs = partial(find_answers, render_pair)
