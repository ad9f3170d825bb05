"""Two or more models side by side on the same rows: which is better, how sure that is, and where they differ."""

from __future__ import annotations

from rich.console import Console

from gemma_tune.compare.comparison import compare_models
from gemma_tune.compare.measuring import NamedModel, compare_measured, look_at_all, measure
from gemma_tune.compare.results import ModelResults
from gemma_tune.compare.sections import write_comparison
from gemma_tune.compare.stored import results_file
from gemma_tune.compare.terminal import show
from gemma_tune.config import Config
from gemma_tune.data.reading import measured_files
from gemma_tune.models.hardware import check_model_hardware
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import is_run_with_results
from gemma_tune.run.result import RunResult
from gemma_tune.run.terminal import say
from gemma_tune.run.tracking import Tracker
from gemma_tune.steps.inputs import note_inputs
from gemma_tune.validation.measuring import needs_rows


def read(cfg: Config, folder: RunFolder) -> list[ModelResults | NamedModel]:
    """What is compared; nothing of it waits for the weights."""
    if needs_rows(cfg):
        check_model_hardware(cfg.model)
    with folder.timed("data"):
        found = look_at_all(cfg)
    say(*dict.fromkeys(one.asked.rows for one in found if isinstance(one, NamedModel)))
    for model, one in zip(cfg.compare.models, found, strict=True):
        say(f"{one.name}: {model}, {'as measured in its run' if isinstance(one, ModelResults) else 'to be measured'}")
    known = [one for one in found if isinstance(one, ModelResults)]
    if len(known) > 1:
        compare_models(known, cfg.compare.level)  # refuses what cannot be compared before anything is measured
    return found


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Takes what runs have measured, measures the other models, and writes comparison.md and comparison.html."""
    found, result = read(cfg, folder), folder.result
    with folder.recording(), Tracker.open(cfg, folder) as tracker:
        if needs_rows(cfg):
            media = [file for one in found if isinstance(one, NamedModel) for file in one.asked.media_files]
            note_inputs(cfg, folder, None, measured_files(cfg.data), media)
        folder.add_inputs(*(results_file(model) for model in cfg.compare.models if is_run_with_results(model)))
        measured = [
            one if isinstance(one, ModelResults) else measure(one, number, folder)
            for number, one in enumerate(found, start=1)
        ]
        left_out = dict.fromkeys(said for one in found if isinstance(one, NamedModel) for said in one.asked.left_out)
        comparison = compare_measured(measured, cfg.compare, folder, [*left_out])
        write_comparison(comparison, folder.path / "comparison.md")
        result.artifacts |= {"comparison": "comparison.html", "markdown": "comparison.md"}
        result.metrics |= comparison.summary()
        tracker.summary(result.metrics)
        tracker.log_comparison(comparison.table())
    show(comparison, Console(highlight=False))
    say(*(f"not measured: {where}: {reason}" for where, reason in result.failures.items()))
    say("Files:", *(f"  {folder.path / file}" for file in result.artifacts.values()))
    return result
