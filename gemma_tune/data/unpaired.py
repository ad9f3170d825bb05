"""Answers labelled good or bad, as token ids: rendered, cut, counted, and stored for TRL's KTOTrainer."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Features, Value

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
from gemma_tune.data.pairs import render_pair
from gemma_tune.data.records import BadRow, Record

# The columns of TRL's KTOTrainer
_FEATURES = Features({"prompt_ids": IDS, "completion_ids": IDS, "label": Value("bool")})


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer to a prompt, and whether it is a good one.

    Attributes:
        prompt: Token ids of the prompt, `<bos>` first, [P].
        completion: Token ids of the answer, its stop token last, [C].
        desirable: Its label.
        media: The prompt's images, sounds and videos, as those of `Rendered`.
    """

    prompt: list[int]
    completion: list[int]
    desirable: bool
    media: Media = field(default_factory=list)

    def cut(self, max_length: int) -> LabelledAnswer:
        """The same cut to `max_length` tokens: the answer loses its end, and the prompt too if it alone is longer."""
        left = max(0, max_length - len(self.prompt))
        return LabelledAnswer(self.prompt[:max_length], self.completion[:left], self.desirable, self.media)

    @property
    def row(self) -> Rendered:
        """The conversation; only the answer has labels."""
        return answer_row(self.prompt, self.completion, self.media)


@dataclass(frozen=True)
class Answers:
    """The labelled answers of a record: one, or the two of a pair, the good one first."""

    all: tuple[LabelledAnswer, ...]

    @property
    def sides(self) -> tuple[Rendered, ...]:
        """Their conversations."""
        return tuple(answer.row for answer in self.all)

    def cut(self, max_length: int) -> Answers:
        """The same with each answer cut."""
        return Answers(tuple(answer.cut(max_length) for answer in self.all))


def render_labelled(record: Record, tokenizer: Any) -> Answers:
    """The labelled answers of a record as the model sees them, not cut; a pair becomes two, as in TRL.

    Raises:
        BadRow: The record has neither a label nor a rejected answer, or can't be rendered.
    """
    if record.rejected is not None:
        pair = render_pair(record, tokenizer)
        sides = ((pair.chosen, True), (pair.rejected, False))
        return Answers(tuple(LabelledAnswer(pair.prompt, answer, good, pair.media) for answer, good in sides))
    if record.messages is None or record.desirable is None:
        raise BadRow(
            f"{record.where}: this row says of no answer whether it is good or bad; read labels with "
            "data=unpaired_preference, or pairs with data=preference."
        )
    prompt, (completion,) = render_answers(record, [record.messages[len(record.prompt) :]], tokenizer)
    return Answers((LabelledAnswer(prompt, completion, record.desirable, prompt.media),))


@dataclass
class Labelled(AnswerRows):
    """`AnswerRows` of labelled answers.

    Attributes:
        desirable: Number of good answers.
        undesirable: Number of bad answers.
        balance: What the user should know about their weights, if anything.
    """

    fits: str = "rows has an answer within"
    desirable: int = 0
    undesirable: int = 0
    balance: str | None = None

    def answers(self, records: Iterable[Record], tokenizer: Any, max_length: int) -> Iterator[Answers]:
        """Renders answers, cuts those longer than `max_length`, drops what has nothing left to learn, and counts."""

        def fit(whole: Answers) -> tuple[Answers | None, bool]:
            kept = whole.cut(max_length)
            completions = [answer.completion for answer in kept.all]
            if not all(completions) or (len(completions) > 1 and completions[0] == completions[1]):
                return None, False
            return kept, kept != whole

        return self.keep(records, lambda r: render_labelled(r, tokenizer), fit)

    def store(self, records: Iterable[Record], tokenizer: Any, max_length: int) -> None:
        """See `AnswerRows`."""
        places = array("q")  # the row of each record's first answer, of a pair the good one

        def rows() -> Iterator[dict[str, Any]]:
            for answers in self.answers(records, tokenizer, max_length):
                places.append(self.desirable + self.undesirable)
                for answer in answers.all:
                    self.desirable += answer.desirable
                    self.undesirable += not answer.desirable
                    ids = {"prompt_ids": answer.prompt, "completion_ids": answer.completion}
                    yield {**ids, "label": answer.desirable, MEDIA_COLUMN: answer.media}

        self.write(_FEATURES, rows())
        self.rendered = StoredRows(len(places), partial(_first, self.dataset, places))

    def counts(self) -> dict[str, int]:
        """See `TokenizedRows`; also the number of good and of bad answers."""
        return {**super().counts(), "desirable": self.desirable, "undesirable": self.undesirable}

    def notes(self, name: str) -> list[str]:
        """See `TokenizedRows`; also `balance`."""
        return [*super().notes(name), *([self.balance] if self.balance else [])]

    @property
    def why_dropped(self) -> str:
        """See `TokenizedRows`."""
        return "rows have no answer (pairs: no difference) within train.max_length and were dropped"


def _first(dataset: Any, places: Sequence[int], number: int) -> Rendered:
    """The first stored answer of a record."""
    row = dataset[places[number]]
    return stored_answer(row, row["completion_ids"])


def load_labelled(data: DataConfig, tokenizer: Any, max_length: int, seed: int) -> tuple[Labelled, Labelled]:
    """The labelled answers to train on and those held out (perhaps none), of rows with labels or of pairs.

    Answers longer than `max_length` are cut at their end; see `load_answers`.

    Raises:
        UserError: As there.
    """
    return load_answers(lambda skip: Labelled(skip_refused=skip), data, tokenizer, max_length, seed)


find_labelled = partial(find_answers, render_labelled)
