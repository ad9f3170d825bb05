"""The second step: what is trained on, the validation rows, and what measures the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from datasets import Dataset

from gemma_tune.chat import media_in
from gemma_tune.config import Config
from gemma_tune.config.eval import ON_ANSWERS, REFERENCES
from gemma_tune.data.reading import read_tests
from gemma_tune.data.records import Record
from gemma_tune.data.remarks import RowRemarks, remark_lines
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.evals.base import Evaluator
from gemma_tune.evals.evaluation import prepare_evaluators
from gemma_tune.models.load import check_vocabulary


class TrainingRows(Protocol):
    """What the steps ask of rows: tokenized rows, pairs, or prompts."""

    highest_id: Any

    def counts(self) -> dict[str, int]:
        """Rows and tokens by name, as the result gives them."""

    def notes(self, name: str) -> list[str]:
        """What a person should know of the rows, a line each."""

    def left_out(self) -> list[str]:
        """The bad rows that were skipped, each with file, line and reason."""


@dataclass(frozen=True)
class Data:
    """The data of one run.

    Attributes:
        train: What is trained on.
        held_out: The validation rows, perhaps none.
        evaluators: What measures the model, by name.
        tests: The test rows, by name.
        longest: Tokens of the longest sequence of a training batch.
        streamed: Whether training rows are read while training, so that they are not counted beforehand.
    """

    train: Any
    held_out: Any
    evaluators: Mapping[str, Evaluator]
    tests: Mapping[str, Sequence[Record]]
    longest: int
    streamed: bool = False

    @property
    def parts(self) -> dict[str, TrainingRows]:
        """The training and, where there are any, the validation rows."""
        train: TrainingRows = self.train
        return {"training": train} if self.held_out is NO_ROWS else {"training": train, "held_out": self.held_out}

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows and tokens of each part; of a stream as far as it was read."""
        return {name: part.counts() for name, part in self.parts.items()}

    def notes(self) -> list[str]:
        """What a person should know of the rows, a line each."""
        named = {"training": "training rows", "held_out": "held-out rows"}
        lines = [line for name, part in self.parts.items() for line in part.notes(named[name])]
        return [*lines, *test_notes(self.tests), *self._unmeasured()]

    def _unmeasured(self) -> list[str]:
        """Evaluators of answers that somebody has named, and that have no test rows; the default ones may have none."""
        names = [name for name in self.evaluators if name in ON_ANSWERS]
        if any(self.tests.values()) or (names in ([], ["answers"]) and len(names) < len(self.evaluators)):
            return []
        return [
            f"nothing is measured by {name}: there are no test rows; set data.test_files.mine to a file of them."
            for name in names
        ]

    def media(self) -> list[str]:
        """The images, sounds and videos of all rows, in order; of a stream none, which isn't read beforehand."""
        return media_files((self.train, self.held_out), self.tests)

    def left_out(self) -> list[str]:
        """The bad rows that were skipped."""
        return [line for part in self.parts.values() for line in part.left_out()]

    def check_vocabulary(self, model: Any) -> None:
        """Raises UserError where a row has a token id that the model has no row of the embedding for."""
        check_vocabulary(model, [part.highest_id for part in self.parts.values()])


def media_files(parts: Iterable[Any], tests: Mapping[str, Sequence[Record]]) -> list[str]:
    """The files of images, sounds and videos that rows name, in order.

    Args:
        parts: Tokenized rows, pairs, or prompts; a stream has none, which isn't read beforehand.
        tests: The test rows by name.
    """
    records = (record for records in tests.values() for record in records)
    of_tests = (part[part["type"]] for record in records for part in media_in(record.messages or []))
    return [*(path for part in parts for path in _files_of(part)), *of_tests]


def _files_of(part: Any) -> Iterable[str]:
    dataset = getattr(part, "dataset", None)
    if isinstance(dataset, Dataset) and "media" in dataset.column_names:
        return (medium["path"] for media in dataset["media"] for medium in media)
    return getattr(part, "media_files", ())  # of prompts


def rows_of_tests(cfg: Config) -> dict[str, list[Record]]:
    """The test rows by name, where any evaluator reads them; references that one compares with count as used.

    Raises:
        UserError: As `read_tests`.
    """
    if not cfg.eval.answers_tests:
        return {}
    tests = read_tests(cfg.data)
    if not cfg.eval.reads_references:
        return tests
    return {name: [_with_references(record) for record in rows] for name, rows in tests.items()}


def _with_references(record: Record) -> Record:
    rest = tuple(name for name in record.unused if name.split(".")[0] != REFERENCES)
    return record if len(rest) == len(record.unused) else record.with_remarks(unused=rest)


def test_notes(tests: Mapping[str, Sequence[Record]]) -> list[str]:
    """What was not used of the test rows, a line each."""
    remarks = {f"data.test_files.{name}": RowRemarks(rows) for name, rows in tests.items()}
    return remark_lines(remarks, "test rows")


NO_ROWS = TokenizedRows()  # where nothing is held out


def with_evaluators(
    cfg: Config, tokenizer: Any, train: Any, held_out: Any, longest: int, streamed: bool = False
) -> Data:
    """Training and validation rows with the test rows and evaluators of the configuration.

    Raises:
        UserError: Test rows or settings that an evaluator cannot work with.
    """
    if not cfg.traits.media:
        _refuse_media(cfg, [*getattr(train, "records", ()), *getattr(held_out, "records", ())])
    tests = rows_of_tests(cfg)
    return Data(train, held_out, prepare_evaluators(cfg, tokenizer, held_out, tests), tests, longest, streamed)


def _refuse_media(cfg: Config, records: Sequence[Record]) -> None:
    """Raises UserError for the first row with an image, a sound or a video."""
    for record in records:
        if record.messages and (media := media_in(record.messages)):
            raise UserError(
                f"{record.where}: this row has an {media[0]['type']}, and recipe={cfg.recipe} knows text alone: it "
                "would be lost. recipe=full_sft, lora_sft, qlora_sft, qat, dpo, kto, grpo, … train on it."
            )
