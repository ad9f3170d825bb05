"""`dry_run=true`: everything up to the first loaded weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gemma_tune.config import Config
from gemma_tune.config.reward import ModelReward
from gemma_tune.data import reading
from gemma_tune.data.reading import read_tests
from gemma_tune.models.estimate.activations import longest_possible, tokens_of_row
from gemma_tune.models.estimate.memory import host_memory, in_unit, table_on_host
from gemma_tune.models.estimate.traffic import in_words, traffic
from gemma_tune.models.hardware import mixed_precision
from gemma_tune.models.sharding import sharding_of
from gemma_tune.plan.speed import operations
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.only_printed import printed
from gemma_tune.run.result import RunResult
from gemma_tune.steps.setup import Setup, look_at_model


def _counts(cfg: Config, recipe: Any, setup: Setup) -> tuple[dict[str, dict[str, int]], list[str], int, Setup]:
    """Rows and tokens of each part, notes, the tokens of the longest sequence of a batch, and what else rows tell."""
    if setup.missing:
        # A checkpoint that isn't downloaded yet is no reason to leave the rows unread
        training = None if cfg.data.streaming or cfg.data.generator else reading.training(cfg.data)
        parts = {"training": training, "held_out": reading.validation(cfg.data)}
        read = {name: {"rows_read": sum(1 for _ in part or ())} for name, part in parts.items()}
        return read, [f"Tokens are not counted: {setup.missing}"], longest_possible(cfg), setup
    if cfg.reward.model.weight:  # would be loaded
        cfg = replace(cfg, reward=replace(cfg.reward, model=ModelReward()))
    data = recipe.read(cfg, setup)
    counts, notes = data.counts(), data.notes()
    if data.streamed:
        del counts["training"]
        notes.insert(0, "Training rows are streamed: they are not counted beforehand.")
    return counts, notes, data.longest, setup.with_media(cfg, data.train)


def _say_processes(console: Console, cfg: Config, setup: Setup, longest: int) -> dict[str, Any]:
    """Says how the processes share the model, what each computes in an optimizer step, and what they send."""
    assert setup.size is not None and cfg.train.per_device_train_batch_size is not None
    sharding, found = sharding_of(cfg), traffic(cfg, setup.size, setup.mixed)
    machines = f" on {sharding.machines} machines" if sharding.machines > 1 else ""
    copies = f"{sharding.copies} {'copies' if sharding.copies > 1 else 'copy'} of the model"
    shared = f", each shared among {sharding.shards}" if sharding.shards > 1 else ", a whole one on each"
    console.print(f"Processes: {sharding.processes}{machines}, {cfg.parallel.strategy}: {copies}{shared}.")
    tokens = cfg.train.per_device_train_batch_size * cfg.train.gradient_accumulation_steps
    tokens *= tokens_of_row(cfg, longest)
    each = operations(cfg, setup.size)
    computed = "" if each is None else f"computes {each * tokens / 1e12:.3g} TFLOP for at most {tokens:,} tokens, and "
    console.print(f"In one optimizer step each process {computed}sends {in_words(found)}.", markup=False)
    return {
        **vars(sharding),
        "operations": each and each * tokens,
        "traffic": [{**vars(one), "sent": one.sent, "network": one.network} for one in found],
    }


def dry_run(cfg: Config, folder: RunFolder, recipe: Any) -> RunResult:
    """Prints the resolved configuration, the data's counts and the memory estimate; writes nothing.

    Args:
        cfg: The configuration.
        folder: The run folder, which isn't made.
        recipe: The recipe's module, whose `read` reads the data.

    Raises:
        UserError: The data can't be used, or not by the evaluators.
    """
    setup = getattr(recipe, "look", look_at_model)(cfg)
    counts, notes, longest, setup = _counts(cfg, recipe, setup)
    console = printed(cfg)
    table = Table(title="Rows and tokens", title_justify="left")
    table.add_column("")
    for name in counts:
        table.add_column(name.replace("_", " "), justify="right")
    for key in next(iter(counts.values())):
        table.add_row(key.replace("_", " "), *(f"{c[key]:,}" if key in c else "" for c in counts.values()))
    console.print(table)
    for name, records in (read_tests(cfg.data) if cfg.eval.answers_tests else {}).items():
        console.print(f"Test rows {name}: {len(records):,}", markup=False)
    for note in notes:
        console.print(note, markup=False)
    metrics: dict[str, Any] = {"data": counts}
    if setup.size is None:
        console.print("Memory: unknown; the model's config.json isn't on this machine.")
    else:
        # Of a recipe of several trainings, the one that needs most
        stages = [stage(cfg, folder.path) for stage in getattr(recipe, "stages", ())] or [cfg]
        of_stages = [(one, replace(setup, mixed=mixed_precision(one, setup.device))) for one in stages]
        largest, setup = max(of_stages, key=lambda pair: pair[1].memory(pair[0], longest)["total"])
        parts = setup.memory(largest, longest)
        metrics["memory_gib"] = parts
        rest = ", ".join(f"{k} {in_unit(v)}" for k, v in parts.items() if k != "total")
        examples = f"{largest.train.per_device_train_batch_size} × {tokens_of_row(largest, longest):,} tokens"
        sharding = sharding_of(largest)
        each = " on each process" if sharding.processes > 1 else ""
        console.print(
            f"Memory, estimated: {in_unit(parts['total'])}{each} ({rest}) in forward passes of at most {examples}, and "
            "about 1 GiB for Python and torch."
        )
        assert setup.size is not None
        if table_on_host(largest, setup.size) and setup.device.type == "cpu":
            of_gpu = replace(setup, device=torch.device("cuda")).memory(largest, longest)
            metrics["gpu_memory_gib"] = of_gpu
            held = in_unit(host_memory(largest, setup.size, setup.mixed, longest)["per-layer embeddings"])
            said = f"Memory of a GPU, estimated, where it trains on one: {in_unit(of_gpu['total'])}, with the per-layer"
            console.print(f"{said} embeddings ({held}) in the machine's own.")
        if host := host_memory(largest, setup.size, setup.mixed, longest):
            metrics["host_memory_gib"] = host
            said = ", ".join(f"{name} {in_unit(gib)}" for name, gib in host.items())
            console.print(f"Memory of each machine itself, estimated, where it trains on GPUs: {said}.")
        if sharding.processes > 1:
            metrics["processes"] = _say_processes(console, largest, setup, longest)
        for warning in setup.memory_warning(largest, longest):
            console.print(warning, markup=False)
    console.print(f"Run folder: {folder.path} (not made). Nothing was trained: dry_run=true.", markup=False)
    return RunResult(cfg.recipe, status="dry_run", metrics=metrics)
