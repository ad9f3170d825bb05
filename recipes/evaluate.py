"""Measuring a model as it is: a checkpoint, an adapter, merged or int4 weights, a run folder, or a GGUF file."""

from __future__ import annotations

from gemma_tune.config import Config
from gemma_tune.data.reading import measured_files
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.models.hardware import check_model_hardware
from gemma_tune.process_failures import go_on_alone
from gemma_tune.report import write_report
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.run.terminal import say, say_end
from gemma_tune.run.tracking import Tracker
from gemma_tune.steps.data import test_notes
from gemma_tune.steps.inputs import note_inputs
from gemma_tune.steps.measure_only import Measurement, prepare_measurement


def read(cfg: Config, folder: RunFolder) -> list[Measurement]:
    """The model and what is asked of it; nothing of it waits for the weights."""
    check_model_hardware(cfg.model)
    with folder.timed("data"):
        return [prepare_measurement(cfg)]


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Measures, and writes eval/after.json, the report and the result."""
    asked = read(cfg, folder)[0]
    source, result = asked.source, folder.result
    with folder.recording(), Tracker.open(cfg, folder) as tracker:
        notes = [*asked.held_out.notes("held-out rows"), *test_notes(asked.tests), *asked.left_out]
        say(asked.rows, f"{cfg.recipe}: {asked.subject} → {folder.path}", *notes)
        note_inputs(cfg, folder, source, measured_files(cfg.data), asked.media_files)
        found = asked.measure("evaluate", folder)
        go_on_alone()  # the others have answered their share
        found.save(folder.evals, "after")
        served = asked.whose_answers(found, result)
        tracker.log(found.figures, step=0, group="eval")
        tracker.log_samples([], found.answers, step=0)
        name = found.headline
        result.headline = {"name": name, "after": found.figures[name]} if name else {}
        result.metrics |= {"after": found.figures, "data": {"held_out": asked.held_out.counts()}}
        tracker.summary(result.metrics)
        write_report(
            cfg, folder, "Nothing: the model was measured as it is", Evaluation(), found, [asked.rows, *notes, *served]
        )
    say_end(folder, Evaluation(), found, [*served, *tracker.notes])
    return result
