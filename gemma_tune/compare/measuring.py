"""Models that are compared: what is known of each before any weight is loaded, and measuring those that aren't yet."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gemma_tune.compare.comparison import Comparison, compare_models
from gemma_tune.compare.named_models import by_compare_models
from gemma_tune.compare.names import differing, named, path_tails, settings, without_namesakes
from gemma_tune.compare.results import ModelResults, results_of
from gemma_tune.compare.stored import stored_results
from gemma_tune.config import CompareConfig, Config
from gemma_tune.errors import RunError, UserError
from gemma_tune.run.existing import stored_config
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import is_run_with_results, resolve
from gemma_tune.steps.inputs import note_source

if TYPE_CHECKING:
    from gemma_tune.steps.measure_only import Measurement


@dataclass(frozen=True)
class NamedModel:
    """A model that is to be measured, and what it is called in the comparison."""

    name: str
    asked: Measurement


def names_of(compare: CompareConfig) -> list[tuple[str, str | None]]:
    """The name of each model, and the setting that it shares with runs of other seeds.

    Runs are called by what differs between their configurations, any other model by the last parts of its path, and
    all of them as `compare.names` says. The setting of what is no run is None.
    """
    models = compare.models
    stored = [stored_config(resolve(m)) if is_run_with_results(m) else None for m in models]
    configs = [tree for tree in stored if tree is not None]
    apart = differing(configs)
    by_difference = iter(zip(named(apart, len(configs)), settings(apart, len(configs)), strict=True))
    found = [next(by_difference) if tree is not None else ("", None) for tree in stored]
    names = compare.names or without_namesakes([name for name, _ in found], path_tails(models))
    return [(name, setting) for name, (_, setting) in zip(names, found, strict=True)]


def look_at_all(cfg: Config) -> list[ModelResults | NamedModel]:
    """What is known of each model without its weights.

    Raises:
        UserError: All that is wrong with them.
    """
    found: list[ModelResults | NamedModel] = []
    problems: dict[str, None] = {}
    for (name, setting), model in zip(names_of(cfg.compare), cfg.compare.models, strict=True):
        try:
            if is_run_with_results(model):
                found.append(replace(stored_results(name, model), setting=setting))
            else:
                found.append(_look_at(cfg, name, model))
        except UserError as error:
            measured_now = not is_run_with_results(model)
            problems |= dict.fromkeys(by_compare_models(error.problems) if measured_now else error.problems)
    if problems:
        raise UserError(*problems)
    return found


def _look_at(cfg: Config, name: str, model: str) -> NamedModel:
    from gemma_tune.steps.measure_only import prepare_measurement  # torch and more; runs have measured themselves

    return NamedModel(name, prepare_measurement(replace(cfg, model=replace(cfg.model, model_name_or_path=model))))


def measure(model: NamedModel, number: int, folder: RunFolder) -> ModelResults:
    """Loads one model, and measures it as `recipe=evaluate` does.

    Raises:
        RunError: It can't be loaded; what was measured of the models before it is kept.
    """
    import torch

    name, source = model.name, model.asked.source
    note_source(folder, source)
    try:
        found = model.asked.measure(name, folder)
    except (UserError, torch.OutOfMemoryError) as error:
        kept = f" What was measured before it is kept in {folder.evals}." if number > 1 else ""
        raise RunError(f"{name}: {error}{kept}") from error
    found.save(folder.evals, f"{number}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}")
    gc.collect()
    return results_of(name, found)


def compare_measured(
    measured: Sequence[ModelResults], compare: CompareConfig, folder: RunFolder, left_out: Sequence[str]
) -> Comparison:
    """The comparison; `left_out` says what was not measured.

    Raises:
        RunError: Nothing can be compared; what was measured for it is kept.
    """
    try:
        return compare_models(measured, compare.level, compare.baseline, left_out)
    except UserError as error:
        raise RunError(f"{error} What was measured is kept in {folder.evals}.") from error
