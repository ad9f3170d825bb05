"""Answers labelled good or bad, as token ids: rendered, cut, counted, and stored for TRL's KTOTrainer."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from gemma_tune.chat import Rendered
from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.pairs import answer_row, render_answers, render_pair
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.rendering import find_records
from gemma_tune.data.scratch import no_room, scratch_folder
from gemma_tune.data.split import split_rows
from gemma_tune.data.tokenized import TokenizedRows, note_reading
from gemma_tune.errors import UserError

_IDS = List(Value("int32"))
# The columns of TRL's KTOTrainer
_FEATURES = Features({"prompt_ids": _IDS, "completion_ids": _IDS, "label": Value("bool")})


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer to a prompt, and whether it is a good one.

    Attributes:
        prompt: Token ids of the prompt, `<bos>` first, [P].
        completion: Token ids of the answer, its stop token last, [C].
        desirable: Its label.
    """

    prompt: list[int]
    completion: list[int]
    desirable: bool

    def cut(self, max_length: int) -> LabelledAnswer:
        """The same cut to `max_length` tokens: the answer loses its end, and the prompt too if it alone is longer."""
        left = max(0, max_length - len(self.prompt))
        return LabelledAnswer(self.prompt[:max_length], self.completion[:left], self.desirable)

    @property
    def row(self) -> Rendered:
        """The conversation; only the answer has labels."""
        return answer_row(self.prompt, self.completion)


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
        return Answers(
            (LabelledAnswer(pair.prompt, pair.chosen, True), LabelledAnswer(pair.prompt, pair.rejected, False))
        )
    if record.messages is None or record.desirable is None:
        raise BadRow(
            f"{record.where}: this row says of no answer whether it is good or bad; read labels with "
            "data=unpaired_preference, or pairs with data=preference."
        )
    prompt, (completion,) = render_answers(record, [record.messages[len(record.prompt) :]], tokenizer)
    return Answers((LabelledAnswer(prompt, completion, record.desirable),))


class FirstRows(Sequence[Rendered]):
    """The conversation of each record, of a pair that with the good answer; in the records' order.

    Args:
        dataset: As `Labelled.dataset`.
        places: The row of each record's first answer.
    """

    def __init__(self, dataset: Dataset, places: Sequence[int]) -> None:
        self._dataset, self._places = dataset, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._dataset[self._places[index]]
        return answer_row(row["prompt_ids"], row["completion_ids"])


@dataclass
class Labelled(TokenizedRows):
    """`TokenizedRows` of labelled answers: `rendered` holds one conversation a record; all answers are counted.

    Attributes:
        desirable: Number of good answers.
        undesirable: Number of bad answers.
    """

    desirable: int = 0
    undesirable: int = 0
    _folder: Any = field(default=None, repr=False)

    def answers(self, records: Iterable[Record], tokenizer: Any, max_length: int) -> Iterator[Answers]:
        """Renders answers, cuts those longer than `max_length`, drops what has nothing left to learn, and counts."""

        def fit(whole: Answers) -> tuple[Answers | None, bool]:
            kept = whole.cut(max_length)
            completions = [answer.completion for answer in kept.all]
            if not all(completions) or (len(completions) > 1 and completions[0] == completions[1]):
                return None, False
            return kept, kept != whole

        return self.keep(records, lambda r: render_labelled(r, tokenizer), fit)

    def store(self, found: Iterable[Answers]) -> None:
        """Writes the answers to a memory-mapped Arrow file, so that memory doesn't grow with their number."""
        self._folder, places = scratch_folder(), array("q")  # the folder goes with this object
        file = str(Path(self._folder.name) / "labelled.arrow")
        with ArrowWriter(path=file, features=_FEATURES, writer_batch_size=1000) as writer:
            for answers in found:
                places.append(self.desirable + self.undesirable)
                for answer in answers.all:
                    self.desirable += answer.desirable
                    self.undesirable += not answer.desirable
                    row = {"prompt_ids": answer.prompt, "completion_ids": answer.completion, "label": answer.desirable}
                    writer.write(row)
            writer.finalize()
        self.dataset = Dataset.from_file(file)
        self.rendered = FirstRows(self.dataset, places)

    def counts(self) -> dict[str, int]:
        """See `TokenizedRows`; also the number of good and of bad answers."""
        return {**super().counts(), "desirable": self.desirable, "undesirable": self.undesirable}

    @property
    def why_dropped(self) -> str:
        """See `TokenizedRows`."""
        return "rows have no answer (pairs: no difference) within train.max_length and were dropped"


def load_labelled(data: DataConfig, tokenizer: Any, max_length: int, seed: int) -> tuple[Labelled, Labelled]:
    """The labelled answers to train on and those held out (perhaps none).

    Args:
        data: Names the files: rows with labels, or pairs.
        tokenizer: A fast tokenizer.
        max_length: The largest number of tokens of a prompt and an answer; longer answers are cut at their end.
        seed: Seed of the held-out share.

    Raises:
        UserError: A bad row (file and line), no rows at all, or no row left.
    """
    split = split_rows(data, seed)

    def load(records: Iterator[Record], name: str) -> Labelled:
        rows = Labelled(skip_refused=data.on_bad_row == "skip")
        bar = tqdm(records, desc=f"render {name}", unit=" rows", disable=None, leave=False)
        try:
            rows.store(rows.answers(bar, tokenizer, max_length))
        except OSError as error:
            raise no_room(f"{name}: rendered rows", error) from error
        if rows.read and not len(rows.rendered):
            raise UserError(
                f"{name}: none of {rows.read} rows has an answer within train.max_length={max_length}; raise it."
            )
        return rows

    return note_reading(split, load(split.train(), "training rows"), load(split.held_out(), "held-out rows"))


def find_labelled(data: DataConfig, tokenizer: Any, max_length: int, wanted: Sequence[Sequence[int]]) -> list[str]:
    """Finds training rows by the token ids of their conversations, as `find_rows` does."""

    def sides(record: Record) -> set[tuple[int, ...]]:
        return {tuple(side.input_ids) for side in render_labelled(record, tokenizer).cut(max_length).sides}

    return find_records(reading.training(data), sides, wanted)
