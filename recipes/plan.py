"""Which models and recipes fit in how much memory, with settings, command and time: `plan`. Nothing is loaded."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from gemma_tune.config import Config
from gemma_tune.models.estimate.capacity import free_memory
from gemma_tune.models.estimate.memory import in_unit
from gemma_tune.models.hardware import mixed_precision, pick_device
from gemma_tune.models.sharding import sharding_of
from gemma_tune.plan import tables
from gemma_tune.plan.fits import KEPT_GB, SIZES, Planner, asked_words
from gemma_tune.plan.known_models import planned_models
from gemma_tune.plan.measuring import measured_speed
from gemma_tune.plan.speed import expected_speed
from gemma_tune.run.only_printed import only_printed
from gemma_tune.run.paths import resolve
from gemma_tune.run.result import RunResult


def run(cfg: Config) -> RunResult:
    """Prints the plan; `metrics["runs"]` of the result holds it. There is no run folder."""
    plan, out = cfg.plan, Console(highlight=False)
    if cfg.dry_run:
        return only_printed(cfg, out, "Nothing was planned")

    # What is planned for: this machine, or a GPU with so much memory
    device, words = pick_device(cfg.model), asked_words(cfg.train)
    sharding = sharding_of(cfg)
    if plan.memory_gb is None:
        free, where = free_memory(device, sharding.per_machine), f"this machine ({device.type})"
        on_gpu = device.type == "cuda"
        planner = Planner(lambda one: mixed_precision(one, device), words, cfg.launch, cfg.parallel, on_gpu)
    else:
        free, where = plan.memory_gb - KEPT_GB, f"a GPU of {plan.memory_gb:g} GB"
        planner = Planner(lambda one: one.model.dtype == "float32", words, cfg.launch, cfg.parallel, on_gpu=True)
    speed = measured_speed(cfg) if plan.measure else expected_speed(plan)
    models = planned_models(cfg.model)

    # Every recipe with every model, by the estimate that a run makes before it loads its model
    runs = [planner.run(model, recipe, free) for model in models for recipe in plan.recipes]
    said = [f"Planned for {where}: {in_unit(free)} for training; rows of up to train.max_length tokens."]
    if sharding.processes > 1:
        said.append(f"Each of {sharding.processes} processes has so much; times leave out what they send.")
    if speed:
        said.append(f"Times are estimates: {speed.said}.")
    if len(models) > 1:
        said.append("The embedded model (model=tiny) is not planned: it trains on any machine.")
    overview = plan.memory_gb is None and len(models) > 1
    least: dict[str, dict[str, Any]] = {}
    if len(models) == 1:
        tables.print_runs(out, runs, speed)
    else:
        cells = {(one.model.name, one.recipe): tables.memory_cell(one) for one in runs}
        title = f"GiB that training takes, of {in_unit(free)}; *: with smaller batches or rows than by default."
        if overview:
            title = f"Least memory in GB, of {', '.join(map(str, SIZES))}; ✓: fits here, in {in_unit(free)}."
            for one in runs:
                found = None if one.refused else planner.smallest_gpu(one.model, one.recipe)
                least.setdefault(one.model.name, {})[one.recipe] = found and found[0]
                cells[one.model.name, one.recipe] = tables.smallest_gpu_cell(found, one)
        names = [(m.name, tables.parameters(m.size.parameters)) for m in models]
        rows = [(*name, [cells[name[0], recipe] for recipe in plan.recipes]) for name in names]
        tables.print_matrix(out, title, plan.recipes, rows)
        out.print(tables.LEGEND, markup=False)
    out.print()
    for line in said:
        out.print(line, markup=False)
    if len(models) > 1:
        out.print(
            "Settings, commands, times: name a model (plan.memory_gb=24 model=gemma3_4b_it), or plan.output_file."
        )
    result = RunResult(cfg.recipe, status="finished", metrics={"runs": tables.rows_of(runs, speed), "least_gb": least})
    if plan.output_file is not None:
        tables.write(resolve(plan.output_file), said, runs, speed, least)
        out.print(f"Plan: {plan.output_file}", markup=False)
        result.artifacts["plan"] = plan.output_file
    return result
