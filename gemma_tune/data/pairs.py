"""Preference pairs as token ids: rendered with our templates, cut, counted, and stored for TRL's trainers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from jinja2 import TemplateError
from tqdm import tqdm

from gemma_tune.chat import Rendered, Unrenderable, render_chat, render_prompt
from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.rendering import find_records
from gemma_tune.data.scratch import no_room, scratch_folder
from gemma_tune.data.split import split_rows
from gemma_tune.data.tokenized import TokenizedRows, note_reading
from gemma_tune.errors import UserError

_IDS = List(Value("int32"))
# TRL's columns: DPO joins the prompt to each answer, the reward trainer takes whole conversations and no prompt.
_FEATURES = Features({"prompt_ids": _IDS, "chosen_ids": _IDS, "rejected_ids": _IDS})


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        prompt: Token ids of the prompt, `<bos>` first, [P].
        chosen: Token ids of the better answer, its stop token last, [C].
        rejected: Token ids of the worse answer, [R].
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        """Number of tokens of the prompt and the longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    def cut(self, max_length: int) -> Pair:
        """The pair cut to `max_length` tokens: answers lose their end, and the prompt too if it alone is longer."""
        left = max(0, max_length - len(self.prompt))
        return Pair(self.prompt[:max_length], self.chosen[:left], self.rejected[:left])

    @property
    def sides(self) -> tuple[Rendered, Rendered]:
        """Both conversations, the chosen one first; only the answers have labels."""
        return answer_row(self.prompt, self.chosen), answer_row(self.prompt, self.rejected)


def answer_row(prompt: list[int], answer: list[int]) -> Rendered:
    """A conversation of which only the answer has labels."""
    return Rendered([*prompt, *answer], [-100] * len(prompt) + answer)


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
    return Pair(prompt, chosen, rejected)


def render_answers(
    record: Record, answers: Sequence[list[dict[str, Any]]], tokenizer: Any
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a record's prompt, and of each answer to it, its stop token last.

    Raises:
        BadRow: The chat template can't render it.
    """
    try:
        prompt = render_prompt(tokenizer, record.prompt, record.tools)
        rows = [render_chat(tokenizer, [*record.prompt, *answer], record.tools) for answer in answers]
    except (Unrenderable, TemplateError) as error:
        raise BadRow(f"{record.where}: {error}") from error
    # The stop token belongs to an answer; what the template writes after it doesn't
    return prompt, [row.input_ids[len(prompt) : row.answer_end] for row in rows]


class ChosenRows(Sequence[Rendered]):
    """The chosen conversations of stored pairs, as rows.

    Args:
        dataset: As `Pairs.dataset`.
        whole: Whether its answers begin with the prompt.
    """

    def __init__(self, dataset: Dataset, whole: bool) -> None:
        self._dataset, self._whole = dataset, whole

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._dataset[index]
        prompt, chosen = row["prompt_ids"], row["chosen_ids"]
        return answer_row(prompt, chosen[len(prompt) :] if self._whole else chosen)


@dataclass
class Pairs(TokenizedRows):
    """`TokenizedRows` of pairs: `rendered` holds the chosen conversations; the tokens of both answers are counted.

    Attributes:
        for_reward: Whether a reward model is trained on them. It takes whole conversations, so in `dataset` each answer
            begins with its prompt. And it reads its score at the end of an answer, so pairs longer than max_length are
            dropped instead of cut.
    """

    for_reward: bool = False
    _folder: Any = field(default=None, repr=False)

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

        return self.keep(records, lambda r: render_pair(r, tokenizer), fit)

    def store(self, pairs: Iterable[Pair]) -> None:
        """Writes the pairs to a memory-mapped Arrow file, so that memory doesn't grow with their number."""
        self._folder = scratch_folder()  # goes with this object
        file = str(Path(self._folder.name) / "pairs.arrow")
        with ArrowWriter(path=file, features=_FEATURES, writer_batch_size=1000) as writer:
            for pair in pairs:
                start = pair.prompt if self.for_reward else []
                answers = {"chosen_ids": [*start, *pair.chosen], "rejected_ids": [*start, *pair.rejected]}
                writer.write({"prompt_ids": pair.prompt, **answers})
            writer.finalize()
        self.dataset = Dataset.from_file(file)
        self.rendered = ChosenRows(self.dataset, whole=self.for_reward)

    @property
    def why_dropped(self) -> str:
        """See `TokenizedRows`."""
        if self.for_reward:
            return "pairs are longer than train.max_length and were dropped"
        return "pairs don't differ within train.max_length and were dropped"


def load_pairs(
    data: DataConfig, tokenizer: Any, max_length: int, seed: int, for_reward: bool = False
) -> tuple[Pairs, Pairs]:
    """The rendered pairs to train on and those held out (perhaps none).

    In pairs longer than `max_length` both answers are cut at their end, as in TRL; pairs whose answers don't differ
    after that are dropped.

    Args:
        data: Names the files.
        tokenizer: A fast tokenizer.
        max_length: The largest number of tokens of a prompt and an answer.
        seed: Seed of the held-out share.
        for_reward: As for `Pairs`.

    Raises:
        UserError: A bad row (file and line), no rows at all, or no row left.
    """
    if data.streaming:
        raise UserError("data.streaming=true: pairs are read before training; leave it out.")
    split = split_rows(data, seed)

    def load(records: Iterator[Record], name: str) -> Pairs:
        pairs = Pairs(skip_refused=data.on_bad_row == "skip", for_reward=for_reward)
        bar = tqdm(records, desc=f"render {name}", unit=" pairs", disable=None, leave=False)
        try:
            pairs.store(pairs.pairs(bar, tokenizer, max_length))
        except OSError as error:
            raise no_room(f"{name}: rendered pairs", error) from error
        if pairs.read and not len(pairs.rendered):
            raise UserError(f"{name}: none of {pairs.read} pairs fits into train.max_length={max_length}; raise it.")
        return pairs

    return note_reading(split, load(split.train(), "training rows"), load(split.held_out(), "held-out rows"))


def find_pairs(data: DataConfig, tokenizer: Any, max_length: int, wanted: Sequence[Sequence[int]]) -> list[str]:
    """Finds training pairs by the token ids of either conversation, as `find_rows` does."""

    def sides(record: Record) -> set[tuple[int, ...]]:
        return {tuple(side.input_ids) for side in render_pair(record, tokenizer).cut(max_length).sides}

    return find_records(reading.training(data), sides, wanted)
