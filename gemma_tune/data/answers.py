"""What pairs and labelled answers have in common: read, rendered, fitted, counted, and stored for TRL's trainers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from jinja2 import TemplateError

from gemma_tune.chat import Rendered, Unrenderable, media_in, render_chat, render_prompt
from gemma_tune.chat.recognise import reduced
from gemma_tune.chat.render import Prompt
from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.loading import note_reading
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.remarks import number
from gemma_tune.data.rendering import Sided, find_records, unrenderable
from gemma_tune.data.scratch import no_room, scratch_folder
from gemma_tune.data.split import split_rows
from gemma_tune.data.storage import MEDIUM
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.processes import from_main
from gemma_tune.progress import progress

IDS = List(Value("int32"))
MEDIA_COLUMN = "media"


def answer_row(prompt: list[int], answer: list[int], media: Sequence[dict[str, Any]] = ()) -> Rendered:
    """A conversation of which only the answer has labels; the media are the prompt's."""
    return Rendered([*prompt, *answer], [-100] * len(prompt) + answer, list(media))


def stored_answer(row: Mapping[str, Any], answer: list[int]) -> Rendered:
    """The conversation of a stored row with one of its answers."""
    return answer_row(row["prompt_ids"], answer, row.get(MEDIA_COLUMN) or ())


def render_answers(
    record: Record, answers: Sequence[list[dict[str, Any]]], tokenizer: Any
) -> tuple[Prompt, list[list[int]]]:
    """Token ids of a record's prompt, with its media, and of each answer to it, its stop token last.

    Raises:
        BadRow: The chat template can't render it, or an answer has media.
    """
    if media_in([message for answer in answers for message in answer]):
        raise BadRow(f"{record.where}: an answer has an image, sound or video; only prompts may have them.")
    try:
        prompt = render_prompt(tokenizer, record.prompt, record.tools)
        rows = [render_chat(tokenizer, [*record.prompt, *answer], record.tools) for answer in answers]
    except (Unrenderable, TemplateError) as error:
        raise unrenderable(record, error) from error
    # The stop token belongs to an answer; what the template writes after it doesn't
    return prompt, [row.input_ids[len(prompt) : row.answer_end] for row in rows]


class StoredRows(Sequence[Rendered]):
    """Rows that are made of a stored data set when they are asked for.

    Args:
        count: Number of rows.
        make: The row of a number.
    """

    def __init__(self, count: int, make: Callable[[int], Rendered]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._count))]
        return self._make(range(self._count)[index])


class Cuttable(Sided, Protocol):
    """The answers of a record."""

    def cut(self, max_length: int) -> Sided:
        """The same cut to so many tokens."""
        ...


@dataclass
class AnswerRows(TokenizedRows):
    """`TokenizedRows` of good and bad answers: `rendered` holds one conversation a record; all answers are counted.

    Attributes:
        fits: What a row is that can be used, for the message where none can.
    """

    fits: str = "rows fits into"
    _folder: Any = field(default=None, repr=False)

    def store(self, records: Iterable[Record], tokenizer: Any, max_length: int) -> None:
        """Renders, fits and counts the answers, and writes them with `write`."""
        raise NotImplementedError

    def write(self, features: Features, rows: Iterable[dict[str, Any]]) -> None:
        """Writes `dataset` to a memory-mapped Arrow file, so that memory doesn't grow with the number of rows.

        Args:
            features: The columns; where a row has media, `media` is another one.
            rows: Their values, and `media`.
        """
        self._folder = scratch_folder()  # goes with this object
        file = str(Path(self._folder.name) / "answers.arrow")
        media = False
        columns = Features({**features, MEDIA_COLUMN: List(MEDIUM)})
        with ArrowWriter(path=file, features=columns, writer_batch_size=1000) as writer:
            for row in rows:
                media = media or bool(row[MEDIA_COLUMN])
                writer.write(row)
            writer.finalize()
        stored = Dataset.from_file(file)
        self.dataset = stored if media else stored.remove_columns(MEDIA_COLUMN)


A = TypeVar("A", bound=AnswerRows)


def load_answers(
    make: Callable[[bool], A], data: DataConfig, tokenizer: Any, max_length: int, seed: int
) -> tuple[A, A]:
    """The answers to train on and those held out (perhaps none).

    Args:
        make: Makes empty rows, told whether those that can't be rendered are left out.
        data: Names the files.
        tokenizer: A fast tokenizer.
        max_length: The largest number of tokens of a prompt and an answer.
        seed: Seed of the held-out share.

    Raises:
        UserError: A bad row (file and line), no rows at all, or no row left.
    """
    if data.streaming:
        raise UserError("data.streaming=true: answers are read before training; leave it out.")
    # One file for all machines: TRL's trainers write the reference's log-probabilities beside it
    return from_main(lambda: _load(make, data, tokenizer, max_length, seed))


def _load(make: Callable[[bool], A], data: DataConfig, tokenizer: Any, max_length: int, seed: int) -> tuple[A, A]:
    split, tokenizer = split_rows(data, seed), reduced(tokenizer, data.encode_by_word)

    def load(records: Iterator[Record], name: str) -> A:
        rows = make(data.on_bad_row == "skip")
        bar = progress(records, desc=f"render {name}", unit=" rows")
        try:
            rows.store(bar, tokenizer, max_length)
        except OSError as error:
            raise no_room(f"{name}: rendered rows", error) from error
        if rows.read and not len(rows.rendered):
            raise UserError(f"{name}: none of {number(rows.read, rows.fits)} train.max_length={max_length}; raise it.")
        return rows

    return note_reading(split, load(split.train(), "training rows"), load(split.held_out(), "held-out rows"))


def find_answers(
    render: Callable[[Record, Any], Cuttable],
    data: DataConfig,
    tokenizer: Any,
    max_length: int,
    wanted: Sequence[Sequence[int]],
) -> list[str]:
    """Finds training rows by the token ids of any of their conversations, as `find_rows` does."""

    def sides(record: Record) -> set[tuple[int, ...]]:
        return {tuple(side.input_ids) for side in render(record, tokenizer).cut(max_length).sides}

    return find_records(reading.training(data), sides, wanted)
