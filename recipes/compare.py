"""Two or more models side by side on the same rows: which is better, how sure that is, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gemma_tune.cli.dry_run import dry_run_of_measuring
from gemma_tune.compare.comparison import Comparison, compare_models
from gemma_tune.compare.measuring import Asked, look_at_all, measure, names_of
from gemma_tune.compare.results import ModelResults
from gemma_tune.compare.sections import write_comparison
from gemma_tune.compare.stored import results_file
from gemma_tune.compare.terminal import show
from gemma_tune.config import Config
from gemma_tune.data.reading import measured_files
from gemma_tune.errors import RunError, UserError
from gemma_tune.evals.evaluation import files_of
from gemma_tune.models.hardware import check_model_hardware
from gemma_tune.run.folder import RunFolder, RunResult
from gemma_tune.run.manifest import file_digest
from gemma_tune.run.paths import is_run_with_results
from gemma_tune.run.terminal import say
from gemma_tune.run.tracking import Tracker
from gemma_tune.validation.measuring import needs_rows


def run(cfg: Config) -> RunResult:
    """Takes what runs have measured, measures the other models, and writes comparison.md and comparison.html."""
    if needs_rows(cfg):
        check_model_hardware(cfg.model)
    folder = RunFolder.open(cfg)
    stored = [results_file(model) for model in cfg.compare.models if is_run_with_results(model)]
    if folder.finished and not cfg.dry_run:
        refuse_changed(folder, stored)
        print(f"This run is done already: see {folder.path}, or repeat it with overwrite=true.")
        return folder.stored_result()

    # What is compared; nothing of it waits for the weights
    with folder.timed("data"):
        found = look_at_all(cfg)
    for name, model, one in zip(names_of(cfg), cfg.compare.models, found, strict=True):
        say(f"{name}: {model}, {'as measured in its run' if isinstance(one, ModelResults) else 'to be measured'}")
    known = [one for one in found if isinstance(one, ModelResults)]
    if len(known) > 1:
        compare_models(known, cfg.compare.level)  # what can't be compared is said before anything is measured
    if cfg.dry_run:
        asked = next((one for one in found if isinstance(one, Asked)), None)
        return dry_run_of_measuring(cfg, asked.held_out, asked.tests) if asked else RunResult(cfg.recipe, "dry_run")

    result = folder.result
    with folder.recording(), Tracker.open(cfg, folder) as tracker:
        folder.add_inputs(*stored, *([*measured_files(cfg.data), *files_of(cfg)] if needs_rows(cfg) else ()))
        measured = []
        for number, one in enumerate(found, start=1):
            with folder.timed("evaluate"):
                measured.append(one if isinstance(one, ModelResults) else measure(one, number, folder))
        comparison = compare_or_keep(measured, cfg.compare.level, folder)
        write_comparison(comparison, folder.path / "comparison.md")
        result.artifacts |= {"comparison": "comparison.html", "markdown": "comparison.md"}
        result.metrics |= comparison.summary()
        tracker.summary(result.metrics)
        tracker.log_comparison(comparison.table())
    show(comparison, Console(highlight=False))
    say(*(f"not measured: {where}: {reason}" for where, reason in result.failures.items()))
    say("Files:", *(f"  {folder.path / file}" for file in result.artifacts.values()))
    return result


def refuse_changed(folder: RunFolder, results: Sequence[Path]) -> None:
    """Raises UserError where runs have been measured anew since they were compared."""
    then = folder.stored_inputs()
    if changed := [file for file in results if then.get(str(file)) != file_digest(file)]:
        raise UserError(
            f"{folder.path} holds this comparison, and since then {', '.join(map(str, changed))} has changed; compare "
            "anew with overwrite=true, or in another output_dir."
        )


def compare_or_keep(measured: Sequence[ModelResults], level: float, folder: RunFolder) -> Comparison:
    """The comparison.

    Raises:
        RunError: Nothing can be compared; what was measured for it is kept.
    """
    try:
        return compare_models(measured, level)
    except UserError as error:
        raise RunError(f"{error} What was measured is kept in {folder.evals}.") from error
