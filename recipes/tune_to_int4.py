"""From a data file to int4 files that were measured in llama.cpp: tuning, training on the grid, and one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from gemma_tune.cli.defaults import resolve_defaults
from gemma_tune.compare.comparison import compare_models
from gemma_tune.compare.results import ModelResults
from gemma_tune.compare.sections import write_comparison
from gemma_tune.compare.stored import stored_results
from gemma_tune.compare.terminal import show
from gemma_tune.config import AdapterConfig, Config, ExportConfig, QuantConfig, TrackerConfig
from gemma_tune.data.reading import data_files
from gemma_tune.data.tokenized import load_held_out, read_tests
from gemma_tune.engines.open import open_engine
from gemma_tune.errors import RunError, UserError
from gemma_tune.evals.evaluation import Evaluation, files_of, prepare_evaluators
from gemma_tune.evals.schedule import RunEvaluator
from gemma_tune.models.capacity import check_disk, check_memory, free_memory
from gemma_tune.models.load import load_config, load_tokenizer, pick_device
from gemma_tune.models.size import size_of
from gemma_tune.models.source import ON_GRID, find_source
from gemma_tune.recipes import qat, sft
from gemma_tune.run.folder import RunFolder, RunResult
from gemma_tune.run.terminal import say
from gemma_tune.train.arguments import mixed_precision

TUNED = "tuned"  # the first training, a run folder in this one; the second is ON_GRID


def run(cfg: Config) -> RunResult:
    """Tunes, trains on the grid, exports, and measures the GGUF in llama.cpp with the evaluators of the others."""
    folder = RunFolder.open(cfg)
    if folder.finished and not cfg.dry_run:
        print(f"This run is done already: see {folder.path}, or repeat it with overwrite=true.")
        return folder.stored_result()
    if cfg.dry_run:
        first: RunResult = sft.run(tuning(cfg, folder.path))
        return first

    # The second training needs more memory than the first, and is refused before it
    source, device, second = find_source(cfg.model), pick_device(cfg.model), training_on_grid(cfg, folder.path)
    shape = size_of(load_config(source))
    check_memory(second, shape, mixed_precision(second, device), free_memory(device))
    check_disk(second, shape, source, folder.path)

    result = folder.result
    tuned, on_grid = folder.path / TUNED, folder.path / ON_GRID
    with folder.recording():
        folder.add_inputs(*source.inputs, *data_files(cfg.data), *files_of(cfg))
        say("1 of 3: tuning")
        with folder.timed("tune"):
            _take(result, TUNED, sft.run(tuning(cfg, folder.path)))
        folder.training = True  # from here on there is something to keep
        say("", "2 of 3: training on the grid")
        try:
            with folder.timed("quantize"):
                _take(result, ON_GRID, qat.run(second))
        except (RunError, UserError) as error:
            kept = f"The tuned model is whole: recipe=qat model.model_name_or_path={tuned} goes on from it."
            raise type(error)(f"{error} {kept}") from error

        say("", "3 of 3: the GGUF in llama.cpp")
        served = cfg_of_served(cfg, next((on_grid / "export" / "gguf").glob("*.gguf")), tuned)
        with folder.timed("evaluate"):
            found = measured_in_llama_cpp(served, result)
        found.save(folder.evals, "after")

        models = [
            stored_results("base", str(tuned), "before"),
            stored_results("tuned", str(tuned)),
            stored_results("int4, trained", str(on_grid)),
            ModelResults("GGUF in llama.cpp", found.figures, found.rows, found.lower_is_better),
        ]
        comparison = compare_models([models[1], models[0], *models[2:]])
        write_comparison(comparison, folder.report)
        result.artifacts |= {"report": "report.md", "page": "report.html"}
        name = found.headline
        if name:
            result.headline = {"name": name, "before": models[0].figures.get(name), "after": found.figures[name]}
        result.metrics |= {"after": found.figures, "comparison": comparison.summary()}
    say("")
    show(comparison, Console(highlight=False))
    say(*(f"not measured: {where}: {reason}" for where, reason in result.failures.items()))
    say("Files:", *(f"  {name:14} {folder.path / path}" for name, path in result.artifacts.items()))
    return result


def tuning(cfg: Config, path: Path) -> Config:
    """The configuration of the first training, which is a run of its own."""
    adapted = "qlora_sft" if cfg.model.load_in_4bit else "lora_sft"
    recipe = "full_sft" if cfg.adapter.peft_type == "none" else adapted
    return replace(
        cfg,
        recipe=recipe,
        method="sft",
        output_dir=str(path / TUNED),
        tracker=_tracker(cfg, path, TUNED),
        quant=QuantConfig(),
        export=replace(cfg.export, formats=ExportConfig().formats),
    )


def training_on_grid(cfg: Config, path: Path) -> Config:
    """The configuration of the second training, on the merged weights of the first one."""
    second = cfg.quant.stage2
    kind = second.peft_type or cfg.adapter.peft_type
    adapter = AdapterConfig()
    if kind != "none":
        a = cfg.adapter
        adapter = AdapterConfig(kind, a.r, a.lora_alpha, target_modules=a.target_modules)
    train = replace(
        cfg.train,
        learning_rate=second.learning_rate,
        per_device_train_batch_size=second.per_device_train_batch_size,
        num_train_epochs=second.num_train_epochs,
        max_steps=second.max_steps,
        eval_steps=None,
        metric_for_best_model=None,
        greater_is_better=None,
        early_stopping_patience=None,
        early_stopping_threshold=0.0,
    )
    found = replace(
        cfg,
        recipe="qat",
        method="qat",
        output_dir=str(path / ON_GRID),
        tracker=_tracker(cfg, path, ON_GRID),
        model=replace(cfg.model, load_in_4bit=False, dtype=None),
        adapter=adapter,
        train=train,
        quant=replace(cfg.quant, stage2=QuantConfig().stage2),
    )
    resolve_defaults(found)  # by the width of the base, which is that of the tuned model
    found.model.model_name_or_path, found.model.revision = str(path / TUNED), None
    return found


def _tracker(cfg: Config, path: Path, stage: str) -> TrackerConfig:
    return replace(cfg.tracker, name=f"{cfg.tracker.name or path.name}-{stage}")


def cfg_of_served(cfg: Config, file: Path, tuned: Path) -> Config:
    """The configuration that measures the GGUF, with the tokenizer of the tuned model."""
    tokenizer = str(tuned / "export" / "merged")
    return replace(cfg, model=replace(cfg.model, model_name_or_path=str(file), tokenizer_name_or_path=tokenizer))


def measured_in_llama_cpp(cfg: Config, result: RunResult) -> Evaluation:
    """What the evaluators say of the GGUF."""
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source, cfg.model.chat_template)
    held_out = load_held_out(cfg.data, tokenizer, cfg.train.max_length, cfg.seed)
    tests = read_tests(cfg.data) if cfg.eval.answers_tests else {}
    measurements = RunEvaluator(cfg, prepare_evaluators(cfg, tokenizer, held_out, tests), held_out, result)
    with open_engine(cfg, source, tokenizer, held_out.highest_id) as engine:
        return measurements.of("GGUF", engine)


def _take(result: RunResult, name: str, stage: RunResult) -> None:
    """What a stage has left and measured, under its name."""
    result.artifacts |= {f"{name}/{key}": f"{name}/{path}" for key, path in stage.artifacts.items()}
    result.metrics[name] = stage.metrics
    result.failures |= {f"{name}: {where}": reason for where, reason in stage.failures.items()}
    result.peak_memory_mb = max(result.peak_memory_mb or 0.0, stage.peak_memory_mb or 0.0)
