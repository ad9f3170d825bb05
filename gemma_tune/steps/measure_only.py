"""Measuring a model that is not trained: what is asked of it, and its answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import set_seed

from gemma_tune.config import Config
from gemma_tune.config.eval import NEED_PROBABILITIES
from gemma_tune.data.loading import load_held_out
from gemma_tune.data.records import Record
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.api_models import served_model
from gemma_tune.engines.base import Engine
from gemma_tune.engines.open import check_evaluators, open_engine
from gemma_tune.evals.base import Evaluator
from gemma_tune.evals.evaluation import Evaluation, prepare_evaluators
from gemma_tune.evals.schedule import RunEvaluator
from gemma_tune.models.check_source import check_source
from gemma_tune.models.estimate.memory import peak_memory_mb, reset_peak
from gemma_tune.models.hardware import pick_device
from gemma_tune.models.load import load_config, load_tokenizer
from gemma_tune.models.source import Source, find_source
from gemma_tune.processes import once_per_node
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.steps.data import media_files, rows_of_tests
from gemma_tune.steps.media_rows import UnreadMedia, media_kinds, with_what_is_measured
from gemma_tune.steps.rows_used import rows_line
from gemma_tune.steps.served_answers import served_answers


@dataclass(frozen=True)
class Measurement:
    """A model that is to be measured, and all that this needs beside its weights.

    Attributes:
        cfg: The configuration, with this model as its own.
        source: Where the weights are.
        tokenizer: Their tokenizer.
        held_out: The validation rows, as the tokenizer cuts them.
        tests: The test rows, by name.
        evaluators: What measures the model, by name.
        media: Whether rows have images, sound or video.
        left_out: What to say of evaluators that are left out, since the engine can't serve them on these rows.
    """

    cfg: Config
    source: Source
    tokenizer: Any
    held_out: TokenizedRows
    tests: Mapping[str, Sequence[Record]]
    evaluators: dict[str, Evaluator]
    media: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def rows(self) -> str:
        """Which rows it is measured on, in one line."""
        return rows_line(self.cfg, self.tests, self.held_out.counts()["rows"])

    @property
    def media_files(self) -> list[str]:
        """The images, sounds and videos of the rows."""
        return media_files([self.held_out], self.tests)

    @property
    def subject(self) -> str:
        """What is measured, for people."""
        model, source = self.cfg.model, self.source
        if model.base_url is not None:
            return f"{served_model(model)} at {model.base_url} (rows, settings and tokenizer of {source.tokenizer})"
        return source.base + (f" with the adapter {source.adapter}" if source.adapter else "")

    def whose_answers(self, found: Evaluation, result: RunResult) -> list[str]:
        """What to say of a model that is asked where it is served; where it is the base, the run has failed.

        Args:
            found: Its figures and answers.
            result: The run's result, which takes the counts.
        """
        if self.cfg.model.base_url is None:
            return []
        lines = [f"Not asked, since a server gives answers and no probabilities: {', '.join(NEED_PROBABILITIES)}."]
        if counts := served_answers(self.cfg.model.model_name_or_path, self.tokenizer, found):
            lines += counts.lines()
            result.metrics["served"] = {k: v for k, v in vars(counts).items() if isinstance(v, int)}
            if failure := counts.failure():
                result.failures["served model"] = failure
                lines.append(f"Warning: {failure}")
        return lines

    @contextlib.contextmanager
    def opened(self, folder: RunFolder) -> Iterator[Engine]:
        """Loads the weights, and lets them go.

        Args:
            folder: The run folder, whose result takes seconds and the peak of memory.

        Raises:
            UserError: The weights cannot be loaded.
        """
        cfg, device = self.cfg, pick_device(self.cfg.model)
        set_seed(cfg.seed)
        reset_peak(device)
        with contextlib.ExitStack() as stack:
            with folder.timed("load"):
                opened = open_engine(cfg, self.source, self.tokenizer, self.held_out.highest_id, self.media)
                engine = stack.enter_context(opened)
            yield engine
        if self.source.gguf is None:  # llama.cpp is a process of its own
            folder.result.peak_memory_mb = max(folder.result.peak_memory_mb or 0.0, peak_memory_mb(device))

    def ask(self, when: str, engine: Engine, folder: RunFolder) -> Evaluation:
        """Runs the evaluators; what fails is noted in the run's result.

        Args:
            when: What is measured, for what is said of failures.
            engine: The weights, opened.
            folder: The run folder, whose result takes seconds and failures.
        """
        with folder.timed("evaluate"):
            return RunEvaluator(self.cfg, self.evaluators, self.held_out, folder.result).of(when, engine)

    def measure(self, when: str, folder: RunFolder) -> Evaluation:
        """Loads the weights, asks them, and lets them go; see `opened` and `ask`."""
        with self.opened(folder) as engine:
            return self.ask(when, engine, folder)


def prepare_measurement(cfg: Config, source: Source | None = None, evaluators: bool = True) -> Measurement:
    """Reads all that is asked of a model; nothing of it waits for the weights.

    Args:
        cfg: The configuration.
        source: Where the weights are; None: what `model.model_name_or_path` names.
        evaluators: Whether test rows are read and evaluators prepared, too.

    Raises:
        UserError: The model, its tokenizer, rows, or settings that an evaluator cannot work with.
    """
    if cfg.model.base_url is not None:
        served_model(cfg.model)  # raises where there is none
    source = source or find_source(cfg.model)
    tokenizer = load_tokenizer(source, cfg.model.chat_template)
    if source.gguf is None:
        check_source(cfg.model, cfg.adapter, source, load_config(source), trains=False)
    if evaluators:
        check_evaluators(cfg, source, tokenizer)
    held_out = once_per_node(lambda: load_held_out(cfg.data, tokenizer, cfg.train.max_length, cfg.seed))
    tests = rows_of_tests(cfg) if evaluators else {}
    if not evaluators:
        return Measurement(cfg, source, tokenizer, held_out, tests, {})
    held, tested = media_kinds(held_out, tests)
    cfg, left_out = with_what_is_measured(cfg, source, tokenizer, held, tested)
    prepared = prepare_evaluators(cfg, tokenizer, held_out, tests)
    return Measurement(cfg, source, tokenizer, held_out, tests, prepared, bool(held | tested), tuple(left_out))


def measure_where_read(cfg: Config, when: str, folder: RunFolder) -> tuple[Evaluation, list[str]]:
    """Measures a file as `measure`, and writes eval/after.json; that its engine can't see a row's media is no failure.

    Args:
        cfg: The configuration, with the file as its model.
        when: What is measured, for messages.
        folder: The run folder, whose result takes seconds and failures.

    Returns:
        What was measured, empty where the engine can't be asked; and what to say of what was left out.
    """
    try:
        asked = prepare_measurement(cfg)
    except UnreadMedia as error:
        return Evaluation(), [f"{when} was not measured: {error}"]
    found = asked.measure(when, folder)
    found.save(folder.evals, "after")
    return found, [*asked.left_out]
