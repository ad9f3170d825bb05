"""`dry_run=true`: everything up to the first loaded weight."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from gemma_tune.config import Config
from gemma_tune.config.methods import Reads
from gemma_tune.config.reward import ModelReward
from gemma_tune.data import reading
from gemma_tune.data.pairs import load_pairs
from gemma_tune.data.records import Record
from gemma_tune.data.stream import stream_rows
from gemma_tune.data.tokenized import TokenizedRows, load_rows, notes_of, read_tests, read_training_prompts
from gemma_tune.errors import UserError
from gemma_tune.evals.evaluation import prepare_evaluators
from gemma_tune.models.capacity import free_memory, memory_warning
from gemma_tune.models.load import load_config, load_tokenizer, pick_device
from gemma_tune.models.memory import estimate
from gemma_tune.models.size import ModelSize, published_size, size_of
from gemma_tune.models.source import Source, find_source
from gemma_tune.rl.rewards import size_of_reward_model
from gemma_tune.rl.tasks import Tasks
from gemma_tune.run.folder import RunFolder, RunResult
from gemma_tune.train.arguments import mixed_precision


def _shape(cfg: Config, source: Source) -> ModelSize | None:
    try:
        return size_of(load_config(source))
    except UserError:
        if source.folder is not None:
            raise
        return published_size(cfg.model.model_name_or_path)


def _counts(cfg: Config, source: Source) -> tuple[dict[str, dict[str, int]], list[str]]:
    try:
        tokenizer = load_tokenizer(source, cfg.model.chat_template)
    except UserError as error:
        if source.folder is not None:
            raise
        # A checkpoint that isn't downloaded yet is no reason to leave the rows unread.
        training = None if cfg.data.streaming or cfg.data.generator else reading.training(cfg.data)
        parts = {"training": training, "held_out": reading.validation(cfg.data)}
        read = {name: {"rows_read": sum(1 for _ in part or ())} for name, part in parts.items()}
        return read, [f"Tokens are not counted: {error}"]
    if cfg.traits.rewarded:
        records, prompts = read_training_prompts(cfg.data, read_tests(cfg.data))
        tasks = Tasks(records, tokenizer, sys.maxsize, prompts.refused if cfg.data.skips_rows else None)
        _prepare(cfg, tokenizer, TokenizedRows())
        longest = tasks.longest_prompt + (cfg.train.max_completion_length or 0)
        return {"training": {"rows": len(tasks), "longest_row": longest}}, prompts.notes("prompts")
    if cfg.traits.reads is Reads.PAIRS:
        drop_long = not cfg.traits.evaluators
        pairs, others = load_pairs(cfg.data, tokenizer, cfg.train.max_length, cfg.seed, drop_long)
        _prepare(cfg, tokenizer, others)
        counts = {"training": pairs.counts(), "held_out": others.counts()}
        counts["training"]["longest_row"] *= 2  # both answers of a pair stand in a batch
        return counts, notes_of(pairs, others)
    if cfg.data.streaming:
        train, held_out = stream_rows(cfg.data, tokenizer, cfg.train.max_length, cfg.seed)
        _prepare(cfg, tokenizer, held_out)
        said = "Training rows are streamed: they are not counted beforehand."
        return {"held_out": held_out.counts()}, [said, *notes_of(train, held_out)]
    train, held_out = load_rows(cfg.data, tokenizer, cfg.train.max_length, cfg.seed)
    _prepare(cfg, tokenizer, held_out)
    counts = {"training": train.counts(), "held_out": held_out.counts()}
    return counts, notes_of(train, held_out)


def _prepare(cfg: Config, tokenizer: Any, held_out: TokenizedRows) -> None:
    """Raises UserError for what the evaluators can't work with."""
    if cfg.reward.model.weight:  # would be loaded
        cfg = replace(cfg, reward=replace(cfg.reward, model=ModelReward()))
    prepare_evaluators(cfg, tokenizer, held_out, read_tests(cfg.data) if cfg.eval.answers_tests else {})


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"


def dry_run_of_measuring(cfg: Config, held_out: TokenizedRows, tests: Mapping[str, Sequence[Record]]) -> RunResult:
    """Prints the resolved configuration and how many rows there are; writes nothing."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(yaml.safe_dump(asdict(cfg), sort_keys=False, allow_unicode=True).rstrip(), markup=False)
    counts = {"held_out": held_out.counts()["rows"], **{name: len(records) for name, records in tests.items()}}
    for name, rows in counts.items():
        console.print(f"Rows, {name.replace('_', ' ')}: {rows:,}", markup=False)
    console.print("No weight was loaded: dry_run=true.")
    return RunResult(cfg.recipe, status="dry_run", metrics={"rows": counts})


def dry_run(cfg: Config, folder: RunFolder) -> RunResult:
    """Prints the resolved configuration, the data's counts and the memory estimate; writes nothing.

    Raises:
        UserError: The data can't be used, or not by the evaluators.
    """
    source = find_source(cfg.model)
    shape = _shape(cfg, source)
    counts, notes = _counts(cfg, source)
    console = Console(highlight=False, soft_wrap=True)
    console.print(yaml.safe_dump(asdict(cfg), sort_keys=False, allow_unicode=True).rstrip(), markup=False)
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
    if shape is None:
        console.print("Memory: unknown; the model's config.json isn't on this machine.")
    else:
        longest = max(c.get("longest_row", cfg.train.max_length) for c in counts.values())
        longest = cfg.train.max_length if cfg.data.streaming else longest
        device = pick_device(cfg.model)
        mixed = mixed_precision(cfg, device)
        beside = size_of_reward_model(cfg)
        parts = estimate(cfg, shape, mixed, longest, beside)
        metrics["memory_gib"] = parts
        rest = ", ".join(f"{k} {_size(v)}" for k, v in parts.items() if k != "total")
        console.print(f"Memory, estimated: {_size(parts['total'])} ({rest}), and about 1 GiB for Python and torch.")
        if warning := memory_warning(cfg, shape, mixed, longest, free_memory(device), beside):
            console.print(warning, markup=False)
    console.print(f"Run folder: {folder.path} (not made). Nothing was trained: dry_run=true.", markup=False)
    return RunResult(cfg.recipe, status="dry_run", metrics=metrics)
