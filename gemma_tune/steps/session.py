"""From the first file of the run folder to its last: measuring, training, exporting and reporting one model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gemma_tune.config import Config
from gemma_tune.data.reading import data_files
from gemma_tune.data.stream import add_counts
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.evals.schedule import RunEvaluator
from gemma_tune.export.formats import say_lines
from gemma_tune.export.unquantized import export_unquantized
from gemma_tune.models.adapters.adapter_files import AdapterSaver
from gemma_tune.models.adapters.weight_counts import WeightCounts
from gemma_tune.models.contexts import attention, training_kernels
from gemma_tune.models.estimate.memory import peak_memory_mb
from gemma_tune.models.gathered import gathered as gathered_model
from gemma_tune.models.gathered import trained_weights
from gemma_tune.models.load import family_of
from gemma_tune.models.sharded import is_sharded
from gemma_tune.models.towers.trained_towers import in_training
from gemma_tune.models.unwrap import language_part
from gemma_tune.nested import leaves
from gemma_tune.process_failures import check_same, go_on_alone
from gemma_tune.processes import gathered, is_main_process
from gemma_tune.progress import phase
from gemma_tune.report import write_report
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import atomic_folder
from gemma_tune.run.stopping import Stopped
from gemma_tune.run.terminal import say, say_end
from gemma_tune.run.tracking import Tracker
from gemma_tune.steps.data import Data
from gemma_tune.steps.inputs import note_inputs
from gemma_tune.steps.setup import Setup
from gemma_tune.train.best import TrainingEnd
from gemma_tune.train.callbacks import FailuresCallback, StopCallback, TrackerCallback

Measure = Callable[[str, Any, Any], Evaluation]


@dataclass
class Session:
    """One training, from the moment that the run folder is written.

    Attributes:
        cfg: The configuration.
        folder: The run folder.
        setup: What `set_up` gave.
        data: The rows.
        model: The model, with its adapter.
        counts: How many weights there are, and how many of them are trained.
        saver: Saves the adapter; made before training, since PiSSA and OLoRA need the adapter as it began.
        tracker: Where metrics are logged.
        checks: What was checked before training, a line each.
        lines: What is trained, beside the count of weights.
        notes: What a person should know, a line each; steps and recipes add to it.
        measure_at: Evaluates a model: when, model, tokenizer.
        evaluator: The evaluators of the configuration; None where `measure_at` is the recipe's own.
        found: What was measured, by when.
        headline: Name and values of the metric to look at first; None: the first that was measured before training,
            else the loss.
        end: How training ended.
        losses: The loss of each logged step.
        warnings: Notes that are also printed at the end.
        gather: Gives the whole model on the first process, where the weights are spread over several.
    """

    cfg: Config
    folder: RunFolder
    setup: Setup
    data: Data
    model: Any
    counts: WeightCounts
    saver: AdapterSaver
    tracker: Tracker
    checks: Sequence[str]
    lines: Sequence[str]
    notes: list[str]
    measure_at: Measure
    evaluator: RunEvaluator | None
    headline: dict[str, Any] | None = None
    end: TrainingEnd | None = None
    losses: list[float] = field(default_factory=list)
    found: dict[str, Evaluation] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    gather: Callable[[], Any] | None = None

    def measure(self, when: str) -> Evaluation:
        """Evaluates the model as it is now and writes eval/<when>.json; logs the metrics unless a resumed run has them.

        Args:
            when: `before` (left out with `eval.before=false`), `after`, or a name for the model at another moment.
        """
        found = Evaluation()
        if when != "before" or self.cfg.eval.before:
            phase(f"evaluating: {when}")
            with self.folder.timed("evaluate"):
                found = self.measure_at(when, self.model, self.setup.tokenizer)
        if is_main_process():
            found.save(self.folder.evals, when)
        self.found[when] = found
        prefix = "" if when in ("before", "after") else f"{when}_"
        if self.end or not self.folder.resumed:
            step = self.end.kept if self.end else 0
            figures: dict[str, Any] = {f"{prefix}{k}": v for k, v in found.figures.items()}
            if self.end and figures:  # a run that goes on measures it anew
                figures["when"] = when
            self.tracker.log(figures, step=step, group="eval")
        if when == "after" and self.end:
            before = self.found.get("before", Evaluation())
            self.tracker.log_samples(before.answers, found.answers, step=self.end.steps)
        return found

    def fit(self, trainer: Any) -> TrainingEnd:
        """Trains to the end, loads the best step where one is kept, and frees the optimizer's memory."""
        say(*(twice := rows_twice(self.cfg, trainer)))
        self.notes += twice
        base, resumed, stops = language_part(self.model), self.folder.resumed, self.folder.stops
        train = self.cfg.train
        stop = StopCallback(stops, train.max_seconds, train.generation_period)
        trainer.add_callback(stop)
        trainer.add_callback(TrackerCallback(self.tracker, stops))
        trainer.add_callback(FailuresCallback(trainer.passed_over, self.folder.keep_failures))
        kernel = base.config._attn_implementation
        if self.evaluator is not None:
            at_step = self.evaluator.at_step
            trainer.measure = partial(at_step, self.model, self.setup.tokenizer, self.tracker, kernel=kernel)
        else:
            trainer.measure = partial(self._measure_at_step, kernel)
        self.folder.keep_on_error = True
        kernels = training_kernels(base, self.cfg, getattr(trainer, "ref_model", None))
        with self.folder.timed("train"), kernels, in_training(self.model):
            if resumed and resumed.at_the_end:
                trainer.take_up(resumed.path)
            else:
                with stops.waiting():
                    trainer.train(resume_from_checkpoint=str(resumed.path) if resumed else None)
            if not stop.ends:
                trainer.keep_the_end()
        stops.agree()
        if stops.asked is not None:
            raise Stopped(stops.asked)
        self.folder.result.peak_memory_mb = peak_memory_mb(self.setup.device)
        self.end = TrainingEnd.of(self.cfg.train, trainer.state)
        self.losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        if self.data.streamed:
            add_counts(self.data.train)
        say(*self.end.lines)
        trainer.release()
        self.warn(*(trainer.profile.lines if trainer.profile else ()))
        if is_sharded(self.model):
            self.gather = partial(gathered_model, self.model, trainer.blank, self.setup.device)
        return self.end

    def _measure_at_step(self, kernel: str, step: int) -> dict[str, float]:
        """As `RunEvaluator.at_step`, for a recipe with a `measure_at` of its own."""
        with attention(language_part(self.model), kernel):
            figures = self.measure_at(f"step {step}", self.model, self.setup.tokenizer).figures
        self.tracker.log(figures, step, group="eval")
        return figures

    def warn(self, *lines: str) -> None:
        """Adds notes that the result calls for; they are in the report, and are printed at the end."""
        self.notes += lines
        self.warnings += lines

    def save_adapter(self) -> None:
        """Saves the adapter, where there is one."""
        if self.cfg.adapter.peft_type != "none":
            weights = trained_weights(self.model) if is_sharded(self.model) else None
            if is_main_process():
                with atomic_folder(self.folder.adapter) as target:
                    self.saver.save(self.model, self.setup.tokenizer, target, weights)
            self.folder.result.artifacts["adapter"] = "adapter"

    def go_on_alone(self) -> None:
        """Ends what processes do together: the first one exports, checks and reports, and the others are done.

        A model whose weights are spread over them is put together in the first one.

        Raises:
            Left: On every process but the first.
        """
        self.folder.result.peak_memory_mb = max(gathered(self.folder.result.peak_memory_mb or 0.0)) or None
        if self.gather is not None:
            self.model = self.gather()
        go_on_alone()

    def export(self, samples: Any = None) -> None:
        """Writes every one of `export.formats`, and compares each with the trained model in the engine that loads it.

        Args:
            samples: Training rows to compare on; None: those of `data`.
        """
        self.go_on_alone()
        rows, measure = self.data.train if samples is None else samples, partial(self.measure_at, "export")
        setup, held_out = self.setup, self.data.held_out
        given = (self.cfg, self.folder, self.model, setup.tokenizer, setup.source)
        say_lines(export_unquantized(*given, rows, held_out, measure, self.folder.adapter))

    def finish(self, **more: Any) -> None:
        """Writes the result, the tracker's summary and the report.

        Args:
            **more: Further metrics of the result, by name.
        """
        assert self.end is not None
        before, after = (self.found.get(when, Evaluation()) for when in ("before", "after"))
        result, name, end = self.folder.result, before.headline, self.end
        loss = {"train_loss_first": self.losses[0], "train_loss_last": self.losses[-1]} if self.losses else {}
        if self.headline is None:
            first, last = loss.get("train_loss_first"), loss.get("train_loss_last")
            measured = {"name": name, "before": before.figures.get(name or ""), "after": after.figures.get(name or "")}
            self.headline = measured if name else {"name": "train_loss", "before": first, "after": last}
        result.headline = self.headline
        result.metrics |= {
            "before": before.figures,
            "after": after.figures,
            **end.figures,
            **loss,
            "data": self.data.counts(),
            "weights": vars(self.counts),
            **more,
        }
        self.tracker.summary(result.metrics)
        notes = [
            *self.data.notes(),
            *self.notes,
            *self.data.left_out(),
        ]  # only now is everything known about streamed rows
        trained = ". ".join([self.counts.line(), *self.lines, *end.lines])
        write_report(self.cfg, self.folder, trained, before, after, notes, self.checks)


def rows_twice(cfg: Config, trainer: Any) -> list[str]:
    """The warning that rows stand twice where the last batches of an epoch are filled up, so that all have as many."""
    if cfg.processes == 1 or cfg.traits.rewarded or cfg.data.streaming or trainer.args.dataloader_drop_last:
        return []
    rows, at_once = len(trainer.train_dataset), trainer.args.per_device_train_batch_size * cfg.processes
    if not rows % at_once:
        return []
    return [
        f"warning: {-rows % at_once} of {rows:,} rows are trained twice at the end of each epoch, since "
        f"{cfg.processes} processes take {at_once} at once; train.extra.dataloader_drop_last=true leaves "
        f"{rows % at_once} out instead"
    ]


@contextlib.contextmanager
def session(
    cfg: Config,
    folder: RunFolder,
    setup: Setup,
    data: Data,
    model: Any,
    counts: WeightCounts,
    checks: Sequence[str],
    notes: Sequence[str] = (),
    lines: Sequence[str] = (),
    measure_at: Measure | None = None,
) -> Iterator[Session]:
    """A training whose run folder is written from here on; config.yaml, manifest.json and result.json are kept current.

    Args:
        cfg: The configuration.
        folder: The run folder.
        setup: What `set_up` gave.
        data: The rows.
        model: The model, with its adapter.
        counts: How many weights there are, and how many of them are trained.
        checks: What was checked before training, a line each.
        notes: What a person should know, a line each.
        lines: What is trained, beside the count of weights; said, and in the report.
        measure_at: Evaluates a model: when, model, tokenizer; None: by the evaluators of the configuration.
    """
    saver = AdapterSaver(model, with_towers=family_of(setup.source).has_towers)
    evaluator = None
    if measure_at is None:
        evaluator = RunEvaluator(cfg, dict(data.evaluators), data.held_out, folder.result)
        measure_at = evaluator.at
    check_same(dict(leaves({"data": data.counts()})))
    notes = [*setup.memory_warning(cfg, data.longest), *notes]
    with folder.recording(), Tracker.open(cfg, folder) as tracker:
        say(*(folder.resumed.lines(cfg.processes) if folder.resumed else ()))
        begun = f"{cfg.recipe}: {setup.source.base} → {folder.path}"
        say(begun, counts.line(), *lines, *data.notes(), *notes, *checks)
        note_inputs(cfg, folder, setup.source, data_files(cfg.data), data.media())
        one = Session(
            cfg, folder, setup, data, model, counts, saver, tracker, checks, lines, list(notes), measure_at, evaluator
        )
        yield one
    say(*one.warnings)
    before, after = (one.found.get(when, Evaluation()) for when in ("before", "after"))
    say_end(folder, before, after, tracker.notes)
