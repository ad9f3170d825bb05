"""From the files of the configuration to tokenized rows: read, split, render, count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from gemma_tune.chat import Rendered
from gemma_tune.chat.recognise import reduced
from gemma_tune.collector import look_as_usual
from gemma_tune.data import reading
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.remarks import RowRemarks, number, remark_lines
from gemma_tune.data.rendering import Sided, fit_row, render_row, split_answers
from gemma_tune.data.scratch import no_room
from gemma_tune.data.storage import ArrowRows
from gemma_tune.errors import UserError
from gemma_tune.progress import progress

KEPT = 1000  # records that are kept as they were read: for samples, and to verify an export
_NAMED = 5
T = TypeVar("T", bound=Sided)
R = TypeVar("R", bound="TokenizedRows")


@dataclass
class TokenizedRows:
    """Rows as token ids and labels, and what became of each row that was read.

    Attributes:
        records: The first `most_kept` records that are used, as read.
        rendered: All rows that are used, as token ids and labels.
        read: Rows read; where each answer needs a prompt of its own, each counts. Rows skipped as bad don't count.
        cut: Rows longer than max_length, of which only the beginning is used.
        dropped: `file:line` of the rows that have no trained token left after cutting.
        too_long: Those of them with media, which are never cut.
        skipped: What is wrong with each row that was left out while reading (`data.on_bad_row=skip`).
        skip_refused: Whether rows that the chat template can't render are left out; else they end the run.
        labels: Whether rows may hold bad answers, since they are shown or measured and not trained.
        refused: What is wrong with each of those that can't be rendered, or whose answer is a bad one.
        formats: The format that each file was recognised as, by its name (`data=auto`).
        remarks: The fields of each file that were not used, by its name.
        repeated: `file:line` of the rows that equal an earlier one; None where duplicates aren't looked for.
        worse: Training rows that have a worse answer, too, which isn't used.
        leaked: `file:line` of the training rows that are also in the held-out or test set; or None.
        tokens: Number of tokens of the rows used, after cutting.
        trained_tokens: Number of those that the loss counts.
        longest: Number of tokens of the longest row.
        dataset: The same rows as the trainer takes them; a stream where `data.streaming` is set.
        ids: The token ids that occur.
        trained_ids: Those that occur where the loss counts.
    """

    records: list[Record] = field(default_factory=list)
    rendered: Sequence[Rendered] = ()
    read: int = 0
    cut: int = 0
    dropped: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    skipped: Collection[str] = ()
    skip_refused: bool = False
    labels: bool = False
    refused: dict[str, None] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, RowRemarks] = field(default_factory=dict)
    repeated: list[str] | None = None
    leaked: list[str] | None = None
    worse: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    dataset: Any = None
    ids: set[int] = field(default_factory=set)
    trained_ids: set[int] = field(default_factory=set)
    most_kept: int = KEPT

    @property
    def highest_id(self) -> int:
        """The highest token id of all rows; 0 without rows."""
        return max(self.ids, default=0)

    @property
    def why_dropped(self) -> str:
        """Why rows were dropped, for the notes."""
        return "rows have no trained token within train.max_length and were dropped"

    def read_by(self, part: reading.SplitReader | None) -> None:
        """Shares the reader's formats, skipped rows and remarks; they grow while it reads."""
        if part is not None:
            self.skipped, self.formats, self.remarks = part.skipped, part.formats, part.remarks

    def left_out(self) -> list[str]:
        """What is wrong with each row that was left out."""
        return [*self.skipped, *self.refused]

    def begin(self) -> None:
        """Resets the counts."""
        self.read = self.cut = self.tokens = self.trained_tokens = self.longest = self.worse = 0
        self.records, self.dropped, self.too_long = [], [], []

    def use(self, records: Iterable[Record], tokenizer: Any, max_length: int) -> Iterator[Rendered]:
        """Renders rows, cuts those longer than `max_length`, drops those left without a trained token; counts."""

        def render(record: Record) -> Rendered:
            self.worse += record.rejected is not None
            return render_row(record, tokenizer, self.labels)

        tokenizer = reduced(tokenizer)
        return self.keep(split_answers(records, tokenizer), render, lambda row: fit_row(row, max_length))

    def keep(
        self, records: Iterable[Record], render: Callable[[Record], T], fit: Callable[[T], tuple[T | None, bool]]
    ) -> Iterator[T]:
        """Renders records and fits them into the length; counts what becomes of each.

        Args:
            records: As read.
            render: Renders a record; one that raises BadRow is left out (`skip_refused`), or ends the reading.
            fit: Gives the part that fits into the length, or None where nothing is left; and whether it was cut.

        Raises:
            UserError: A record that can't be rendered, unless such records are left out.
        """
        look_as_usual()
        for record in records:
            try:
                whole = render(record)
            except BadRow as error:
                if not self.skip_refused:
                    raise UserError(str(error)) from error
                self.refused[str(error)] = None
                continue
            self.read += 1
            row, is_cut = fit(whole)
            self.cut += is_cut
            if row is None:
                self.dropped.append(record.where)
                if any(side.media and side.trained_tokens for side in whole.sides):
                    self.too_long.append(record.where)
                continue
            self.add(record, *row.sides)
            yield row

    def add(self, record: Record, *rows: Rendered) -> None:
        """Counts a record that is used, and its rows."""
        if len(self.records) < self.most_kept:
            self.records.append(record)
        for row in rows:
            self.tokens += len(row.input_ids)
            self.trained_tokens += row.trained_tokens
            self.longest = max(self.longest, len(row.input_ids))
            self.ids.update(row.input_ids)
            self.trained_ids.update(row.labels)
        self.trained_ids.discard(-100)

    def counts(self) -> dict[str, int]:
        """Numbers of rows and tokens for the report; tokens are counted after cutting."""
        looked_for = {"rows_repeated": self.repeated, "rows_leaked": self.leaked}
        return {
            "rows_read": self.read,
            "rows": self.read - len(self.dropped),
            "rows_cut": self.cut,
            "rows_dropped": len(self.dropped),
            "rows_skipped": len(self.left_out()),
            **{name: len(where) for name, where in looked_for.items() if where is not None},
            "tokens": self.tokens,
            "longest_row": self.longest,
            "trained_tokens": self.trained_tokens,
        }

    def notes(self, name: str) -> list[str]:
        """What the user should know about these rows, one line each; `name` says which rows they are."""
        found = []
        for kind, count in Counter(self.formats.values()).items():
            first = next(file for file, its in self.formats.items() if its == kind)
            found.append(f"{name}: {first if count == 1 else f'{count} files'} read as {kind}")
        found += remark_lines(self.remarks, name)
        for what, where in (
            ("bad rows were skipped", self.left_out()),
            (self.why_dropped, [where for where in self.dropped if where not in set(self.too_long)]),
            ("rows with media are longer than train.max_length and were dropped: no medium is cut", self.too_long),
            ("rows are equal to an earlier one", self.repeated),
            ("rows are also in the held-out or test set: what is measured there was trained on", self.leaked),
        ):
            if where:
                first = "; ".join(islice(where, _NAMED))
                found.append(f"warning: {name}: {number(len(where), what)}. The first: {first}")
        worse = "rows have a worse answer, too (rejected), which isn't used here; recipe=dpo learns from both"
        cut = "rows are longer than train.max_length and were cut at their end"
        return found + [f"{name}: {number(n, said)}" for n, said in ((self.worse, worse), (self.cut, cut)) if n]


def notes_of(train: TokenizedRows, held_out: TokenizedRows) -> list[str]:
    """What the user should know about the rows of a run, one line each."""
    return [*train.notes("training rows"), *held_out.notes("held-out rows")]


def render_rows(
    records: Iterable[Record],
    tokenizer: Any,
    max_length: int,
    name: str,
    skip_refused: bool = False,
    labels: bool = False,
) -> TokenizedRows:
    """Renders rows, cuts those longer than max_length, and drops those left without a trained token.

    Args:
        records: Rows as read.
        tokenizer: A fast tokenizer.
        max_length: The largest number of tokens in a row.
        name: Which rows these are, for the progress bar and the message.
        skip_refused: Whether rows that the chat template can't render are left out; else they end the run.
        labels: As for `TokenizedRows`.

    Raises:
        UserError: No row is left.
    """
    rows = TokenizedRows(skip_refused=skip_refused, labels=labels)
    bar = progress(records, desc=f"render {name}", unit=" rows")
    return store_rows(rows, lambda: ArrowRows(rows.use(bar, tokenizer, max_length)), max_length, name)


def store_rows(rows: R, store: Callable[[], ArrowRows], max_length: int, name: str) -> R:
    """Rows with what was stored of them; `store` counts them, too.

    Raises:
        UserError: No row is left, or the disk has no room.
    """
    try:
        stored = store()
    except OSError as error:
        raise no_room(f"{name}: rendered rows", error) from error
    rows.rendered, rows.dataset = stored, stored.dataset
    if rows.read and not stored and not rows.cut and not rows.too_long:
        raise UserError(f"{name}: no row has an answer to train: each is switched off (`weight`), or empty.")
    if rows.read and not stored:
        those = number(rows.read, "rows")
        raise UserError(f"{name}: none of {those} has a trained token within train.max_length={max_length}; raise it.")
    return rows
