"""Prompts and completions in the form that rewards receive."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError

from gemma_tune.chat import Rendered, Unrenderable, form_of
from gemma_tune.chat.answer_text import answer_text
from gemma_tune.chat.calls import calls_of, parse_answer
from gemma_tune.chat.render import prompt_text, row_of_text
from gemma_tune.config import DataConfig, TrainConfig
from gemma_tune.data import reading
from gemma_tune.data.formats import gym
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.rendering import refuse_bad_answer
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.progress import progress
from gemma_tune.rewards.base import Completion, Task

_MADE = 100  # of generated prompts, this many are rendered before training


def task_of(record: Record) -> Task:
    """A record as rewards receive it."""
    calls = [(call.name, call.arguments) for call in calls_of(record.wanted or {})]
    return Task(record.where, record.prompt, record.answer, calls, record.tools or (), record.row)


def parse_completion(tokenizer: Any, ids: Sequence[int], stops: frozenset[int]) -> Completion:
    """Parses the tokens of a completion for rewards.

    Args:
        tokenizer: The tokenizer, with a known chat template.
        ids: The new token ids, including the stop token if there is one.
        stops: The ids of stop tokens.
    """
    text = answer_text(tokenizer, ids)
    found = parse_answer(text, form_of(tokenizer))
    return Completion(
        text,
        tokens=len(ids),
        stopped=bool(ids) and ids[-1] in stops,
        text=found.text,
        thinking=found.thinking,
        calls=[(call.name, call.arguments) for call in found.calls],
        ids=ids,
    )


class Tasks:
    """The prompts of a run with rewards.

    Args:
        records: The rows: a list, or a sequence that generates each one on access.
        tokenizer: The tokenizer, with a known chat template.
        longest: Tokens of a prompt at most.
        refused: Collects the messages about unusable rows, which are left out; None: such a row is an error.

    Attributes:
        most_media: Tokens of a prompt that stand for images, sounds and videos, at most.
        media_files: Their files, in order.

    Raises:
        UserError: A row isn't a conversation, can't be rendered by the model's chat template, or is too long.
    """

    def __init__(
        self,
        records: Sequence[Record],
        tokenizer: Any,
        longest: int,
        refused: dict[str, None] | None = None,
        read: TokenizedRows | None = None,
    ) -> None:
        self._read = read or TokenizedRows(read=len(records))
        self._records, self._tokenizer, self._longest = records, tokenizer, longest
        self._made = not isinstance(records, list)
        self.looked_at = min(len(records), _MADE) if self._made else len(records)
        self.longest_prompt = self.highest_id = self.most_media = 0
        self.media_files: list[str] = []
        used = []
        for i in progress(range(self.looked_at), desc="prompts", unit=" rows"):
            try:
                row = self.rendered(i)
            except UserError as error:
                if refused is None:
                    raise
                refused[str(error)] = None
                continue
            used.append(records[i])
            ids = row.input_ids
            self.longest_prompt, self.highest_id = max(self.longest_prompt, len(ids)), max(self.highest_id, *ids)
            self.most_media = max(self.most_media, sum(medium["tokens"] for medium in row.media))
            self.media_files += [medium["path"] for medium in row.media]
        if not used:
            raise UserError(f"data.train_file: no row can be used. The first: {next(iter(refused or {}), '')}")
        if not self._made:
            self._records, self.looked_at = used, len(used)
            self._read.worse = sum(record.rejected is not None for record in used)

    def __len__(self) -> int:
        return len(self._records)

    def counts(self) -> dict[str, int]:
        """Prompts used and skipped, and tokens of the longest one."""
        skipped = len(self.left_out())
        return {"rows": len(self), "rows_skipped": skipped, "longest_prompt": self.longest_prompt}

    def notes(self, name: str) -> list[str]:
        """What a person should know of the prompts, a line each."""
        more = ["prompts: reward functions may read every field of a row"] if self._read.remarks else []
        return [
            *self._read.notes("prompts"),
            *more,
            f"prompts: {len(self):,}, of {self.longest_prompt:,} tokens at most",
        ]

    def left_out(self) -> list[str]:
        """The bad rows that were skipped, each with file, line and reason."""
        return self._read.left_out()

    def __getitem__(self, place: int) -> Task:
        return task_of(self._records[place])

    def shown(self) -> list[Task]:
        """All prompts; of generated ones, the first."""
        return [self[i] for i in range(self.looked_at)]

    def where(self, place: int) -> str:
        """File and line of a row."""
        return self._records[place].where

    def prompt(self, place: int) -> str:
        """The prompt as text, including `<bos>`; the template's placeholder stands for each medium.

        Raises:
            UserError: The model's chat template can't render it.
        """
        record = self._records[place]
        if record.messages is None:
            raise UserError(f"{record.where} is plain text without a prompt to answer.")
        try:
            refuse_bad_answer(record)  # rewards compare with it
            return prompt_text(self._tokenizer, record.prompt, record.tools, record.thinking)
        except BadRow as error:
            raise UserError(str(error)) from error
        except (Unrenderable, TemplateError) as error:
            raise UserError(f"{record.where}: {error}") from error

    def rows(self, count: int) -> TokenizedRows:
        """The first prompts as rows, for checks of the model and its exports."""
        places = range(min(count, self.looked_at))
        rendered = list(map(_all_trained, map(self.rendered, places)))
        return TokenizedRows(records=[self._records[i] for i in places], rendered=rendered, read=len(rendered))

    def rendered(self, place: int) -> Rendered:
        """The prompt as token ids, with its media.

        Raises:
            UserError: The model's chat template can't render it, a medium can't be used, or it is too long.
        """
        record, text = self._records[place], self.prompt(place)
        try:
            row = row_of_text(self._tokenizer, record.prompt, text)
        except Unrenderable as error:
            raise UserError(f"{record.where}: {error}") from error
        if len(row.input_ids) > self._longest:
            raise UserError(
                f"{record.where}: the prompt has {len(row.input_ids):,} tokens, and {self._longest:,} fit into the "
                "model's context beside a completion; shorten it, or lower train.max_completion_length."
            )
        return row

    @property
    def dataset(self) -> Dataset:
        """The rows as TRL's trainers take them: `prompt` (text) and `row` (the row's index)."""

        def rendered(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
            for i in batch["row"] if self._made else ():
                self.rendered(i)  # those of a list have been checked
            return {"prompt": [self.prompt(i) for i in batch["row"]], "row": batch["row"]}

        return Dataset.from_dict({"row": list(range(len(self)))}).with_transform(rendered)


def _all_trained(row: Rendered) -> Rendered:
    """A row with labels on all its tokens but those that stand for media."""
    soft = {row.input_ids[medium["at"]] for medium in row.media}
    return Rendered(row.input_ids, [-100 if i in soft else i for i in row.input_ids], row.media)


def read_training_prompts(
    data: DataConfig, tests: Mapping[str, Sequence[Record]]
) -> tuple[Sequence[Record], TokenizedRows]:
    """The prompts of training with rewards: all rows to train on, not rendered.

    Args:
        data: Names the files, or a generator of tasks.
        tests: The test rows; prompts that are also among them are counted as leaked.

    Returns:
        The rows, and what became of them.

    Raises:
        UserError: A bad row (file and line), or no rows at all.
    """
    if data.generator:
        tasks = gym.training_tasks(data)
        return tasks, TokenizedRows(read=len(tasks))
    part = reading.training(data)
    records = list(progress(part, desc="read prompts", unit=" rows"))
    held = {json.dumps([r.prompt, r.tools]) for rows in tests.values() for r in rows}
    leaked = [r.where for r in records if json.dumps([r.prompt, r.tools]) in held]
    read = TokenizedRows(read=len(records), leaked=leaked)
    read.read_by(part)
    return records, read


def read_tasks(data: DataConfig, tests: Mapping[str, Sequence[Record]], tokenizer: Any, longest: int) -> Tasks:
    """The prompts of the training set as tasks.

    Args:
        data: Names the files, or a generator of tasks.
        tests: The test rows; prompts that are among them, too, are noted as leaked.
        tokenizer: The tokenizer, with a template that we know.
        longest: Tokens of a prompt at most.

    Raises:
        UserError: As `Tasks` and `read_training_prompts`.
    """
    records, read = read_training_prompts(data, tests)
    return Tasks(records, tokenizer, longest, read.refused if data.skips_rows else None, read)


def check_number(tasks: Tasks, train: TrainConfig, most: int | None = None, processes: int = 1) -> None:
    """Raises UserError where there are fewer prompts than one generation takes.

    Args:
        tasks: The prompts.
        train: The sizes of a generation.
        most: `data.max_train_samples`.
        processes: That write completions at once.
    """
    batch, passes, group = train.per_device_train_batch_size or 0, train.passes_per_generation, train.num_generations
    passes *= processes
    prompts = batch * passes // group
    if len(tasks) >= prompts:
        return
    fits = [b for b in range(1, batch) if b * passes % group == 0 and b * passes // group <= len(tasks)]
    ways = [f"train.per_device_train_batch_size={fits[-1]}"] if fits else ["more rows"]
    few = most is not None and most < prompts
    if few:
        ways.insert(0, f"data.max_train_samples={prompts} or more")
    raise UserError(
        f"{'data.max_train_samples' if few else 'data.train_file'}: a generation takes {prompts} prompts "
        f"(train.per_device_train_batch_size × steps_per_generation / num_generations = {batch} × {passes} / {group}), "
        f"and there are {len(tasks)}; set {', or '.join(ways)}."
    )
