"""The last step of an export: quality, size and speed of each file, against the model that it was made from."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gemma_tune.chat import Rendered
from gemma_tune.cli.stages import of_measuring
from gemma_tune.compare.comparison import Comparison, compare_models
from gemma_tune.compare.results import results_of
from gemma_tune.config import Config, ModelConfig
from gemma_tune.config.eval import ON_ANSWERS
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.llama_cpp import EngineUnavailable
from gemma_tune.engines.speed import TokenRates, speed_of
from gemma_tune.errors import RunError, UserError
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.export.lora_check import LORA, served_base
from gemma_tune.models.folders import not_loaded
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import Source, find_source
from gemma_tune.report.artifacts import artifact_size, total_size
from gemma_tune.report.exported import FileFacts, exported_metrics
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import ASSETS, gguf_models, looks_local, resolve
from gemma_tune.run.terminal import say
from gemma_tune.steps.advice import advice_on
from gemma_tune.steps.measure_only import Measurement, prepare_measurement
from gemma_tune.steps.media_rows import UnreadMedia
from gemma_tune.validation.measuring import holds_out

SOURCE = "source"
_CHARACTERS = 8000  # more tokens than are compared
_NAME_ROWS = (
    "name rows with prompts and answers (data=auto data.test_files.mine=FILE), or the run folder that the model is from"
)


def quality_evaluator(cfg: Config) -> str | None:
    """The evaluator whose figure files are compared in: the first that answers, else the validation loss."""
    tests, chosen = bool(cfg.data.generator or any(cfg.data.test_files.values())), cfg.eval.evaluators
    if not cfg.export.quality_samples:
        return None
    for name in chosen:
        if name in ("tool_calls", "lm_eval") or (tests and (name in (*ON_ANSWERS, "rewards") or ":" in name)):
            return name
    losses = (name for name in ("preference", "held_out_loss") if name in chosen)
    return next(losses, None) if holds_out(cfg.data) else None


def why_not_measured(cfg: Config) -> str:
    """What to say, and to do, where there is no such evaluator."""
    if not cfg.export.quality_samples:
        return "Quality was not measured: export.quality_samples=0."
    if not cfg.eval.evaluators:
        return "Quality was not measured: eval.evaluators is empty; add eval=default."
    return f"Quality was not measured: there are no rows to measure it on; {_NAME_ROWS}."


def quality_measurement(cfg: Config, model: str, tokenizer: str | None = None) -> Measurement | None:
    """What is asked of a model: that one evaluator, on at most `export.quality_samples` rows; None where there is none.

    Args:
        cfg: The run's configuration.
        model: The source, or an exported file.
        tokenizer: Its tokenizer; None: the one beside the weights.

    Raises:
        UserError: As `prepare_measurement`.
    """
    evaluator, most = quality_evaluator(cfg), cfg.export.quality_samples
    if evaluator is None:
        return None
    e, rows = cfg.eval, cfg.data.max_eval_samples
    few = replace(
        e,
        evaluators=[evaluator],
        max_samples=min(e.max_samples or most, most),
        num_samples=0,
        lm_eval=replace(e.lm_eval, limit=min(e.lm_eval.limit or most, most)),
    )
    data = replace(cfg.data, max_eval_samples=min(rows or most, most))
    return prepare_measurement(of_measuring(replace(cfg, eval=few, data=data), model, tokenizer))


def free_memory_of(model: Any) -> None:
    """Frees the memory of a model that is needed no more, whoever still names it: files are loaded after it."""
    for tensor in (*model.parameters(), *model.buffers()):  # `to("meta")` can't do this to 4-bit weights
        tensor.data = torch.empty(0, dtype=tensor.dtype)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_files(
    cfg: Config, folder: RunFolder, model: Any, source: Source, known: Evaluation | None = None
) -> dict[str, Any]:
    """Measures the source and every exported file by one evaluator, times them, and compares them row by row.

    A file that can't be measured is named in the run's failures; the run goes on.

    Args:
        cfg: The run's configuration.
        folder: The run folder, with its artifacts; the result's `metrics.exported` is set.
        model: The model in memory, which is let go: files are loaded in its place.
        source: What the files were made from; its tokenizer is theirs.
        known: What the source has answered already; None: it is measured now.

    Returns:
        `exported_metrics`.
    """
    free_memory_of(model)
    formats = [name for name in cfg.export.formats if name in folder.result.artifacts]
    named = cfg.model.model_name_or_path
    places = {SOURCE: named} | {name: str(_place(folder, name)) for name in formats}
    found, speeds, notes = dict[str, Evaluation](), dict[str, TokenRates | None](), list[str]()
    if quality_evaluator(cfg) and formats:
        for number, (name, place) in enumerate(places.items(), start=1):
            if name == SOURCE and known is not None:
                found[name] = known
                notes.append(f"{SOURCE} was not timed: its figures are those from before training, when it was loaded.")
                continue
            if name != SOURCE and (why := not_loaded(Path(place))):
                notes.append(f"{name} was not measured: {why}")
                continue
            say(f"measuring {number} of {len(places)}: {name}")
            try:
                with _asked_of(cfg, name, place, source, model) as asked, asked.opened(folder) as engine:
                    found[name] = asked.ask(name, engine, folder)
                    found[name].save(folder.evals, f"export-{name}")
                    speeds[name] = speed_of(engine)
            except (EngineUnavailable, UnreadMedia) as error:
                notes.append(f"{name} was not measured: {error}")
            except (RunError, UserError, OSError, torch.OutOfMemoryError) as error:
                folder.result.failures[f"quality of {name}"] = str(error)
            gc.collect()
    if LORA in found:
        notes.append(
            f"{LORA} was measured and timed on a float16 GGUF file of its base; its size is the adapter's alone."
        )
    sizes = {name: _facts(name, place, speeds.get(name)) for name, place in places.items()}
    comparison, why = _compared(cfg, found)
    figure = next(iter(comparison.figures), None) if comparison else None
    metrics = exported_metrics(figure, comparison, list(sizes.values()), why)
    metrics["notes"] += notes
    metrics["advice"] = list(advice_on(cfg, metrics))
    folder.result.metrics["exported"] = metrics
    if figure and not folder.result.headline and len(figure.model_stats) > 1:
        before, after = (stats.mean.mean for stats in figure.model_stats[:2])
        folder.result.headline = {"name": figure.name, "before": before, "after": after}
    return metrics


@contextlib.contextmanager
def _asked_of(cfg: Config, name: str, place: str, source: Source, model: Any) -> Iterator[Measurement]:
    """What is asked of the source or of a file; a GGUF LoRA file stands on its base, as it is served."""
    with contextlib.ExitStack() as stack:
        if name == LORA:
            tokenizer = load_tokenizer(source, cfg.model.chat_template)
            base = stack.enter_context(served_base(Path(place), model, tokenizer, source))
            asked = quality_measurement(cfg, str(base), source.tokenizer)
        else:
            asked = quality_measurement(cfg, place, source.tokenizer if place.endswith(".gguf") else None)
        assert asked is not None
        yield replace(asked, source=replace(asked.source, adapter=Path(place))) if name == LORA else asked


def _place(folder: RunFolder, name: str) -> Path:
    place = folder.export(name)
    return next(iter(gguf_models(place)), place)


def _facts(name: str, place: str, speed: TokenRates | None) -> FileFacts:
    size = total_size([artifact_size(part) for part in _parts(place)] if looks_local(place) else [])
    return FileFacts(name, place, size.total or None, size.bits_per_weight, speed)


def _parts(place: str) -> Iterator[Path]:
    """The folders that hold the weights of a model: base and adapter."""
    try:
        source = find_source(ModelConfig(place))
    except UserError:
        yield from [resolve(place)] if resolve(place).exists() else []
        return
    yield from (part for part in (source.gguf, source.folder, source.adapter) if part)


def _compared(cfg: Config, found: Mapping[str, Evaluation]) -> tuple[Comparison | None, str]:
    """The files compared with the source, on the rows that all have; or why they are not."""
    if quality_evaluator(cfg) is None:
        return None, why_not_measured(cfg)
    if SOURCE not in found or len(found) < 2:
        return None, "Quality was not compared: the source or all files could not be measured."
    others = [e for name, e in found.items() if name != SOURCE]
    shared = {
        figure: {row["id"] for row in rows}
        for figure, rows in others[0].rows.items()
        if all(figure in other.rows for other in others)
    }
    results = []
    for name, one in found.items():
        rows = {
            figure: [row for row in rows if row["id"] in shared[figure]]
            for figure, rows in one.rows.items()
            if figure in shared
        }
        results.append(replace(results_of(name, one), figures={}, scores=rows))
    try:
        return compare_models(results), ""
    except UserError as error:
        return None, f"Quality was not compared: {error}"


def rows_to_check(asked: Measurement) -> TokenizedRows:
    """The validation rows, on which files are compared with the model position by position; else a text of ours.

    Numbers are compared there and no quality is measured, so that any text will do.
    """
    if len(asked.held_out.rendered):
        return asked.held_out
    text = (ASSETS / "sample" / "validation.jsonl").read_text(encoding="utf-8")
    ids = asked.tokenizer(text[:_CHARACTERS]).input_ids
    return replace(asked.held_out, rendered=[Rendered(ids, ids)])
