"""Measuring a model as it is: a checkpoint, an adapter, merged or int4 weights, a run folder, or a GGUF file."""

from __future__ import annotations

import contextlib

from transformers import set_seed

from gemma_tune.cli.dry_run import dry_run_of_measuring
from gemma_tune.config import Config
from gemma_tune.data.reading import measured_files
from gemma_tune.data.tokenized import load_held_out, read_tests
from gemma_tune.engines.open import check_evaluators, open_engine
from gemma_tune.evals.evaluation import Evaluation, files_of, prepare_evaluators
from gemma_tune.evals.schedule import RunEvaluator
from gemma_tune.models.hardware import check_model_hardware
from gemma_tune.models.load import load_tokenizer, pick_device
from gemma_tune.models.memory import peak_memory_mb, reset_peak
from gemma_tune.models.source import find_source
from gemma_tune.report import write_report
from gemma_tune.run.folder import RunFolder, RunResult
from gemma_tune.run.terminal import say, say_end
from gemma_tune.run.tracking import Tracker


def run(cfg: Config) -> RunResult:
    """Measures, and writes eval/after.json, the report and the result."""
    check_model_hardware(cfg.model)
    folder = RunFolder.open(cfg)
    if folder.finished and not cfg.dry_run:
        print(f"This run is done already: see {folder.report}, or repeat it with overwrite=true.")
        return folder.stored_result()

    # What is asked; nothing of it waits for the weights
    source, device = find_source(cfg.model), pick_device(cfg.model)
    tokenizer = load_tokenizer(source, cfg.model.chat_template)
    check_evaluators(cfg, source, tokenizer)
    with folder.timed("data"):
        held_out = load_held_out(cfg.data, tokenizer, cfg.train.max_length, cfg.seed)
        tests = read_tests(cfg.data) if cfg.eval.answers_tests else {}
        evaluators = prepare_evaluators(cfg, tokenizer, held_out, tests)
    if cfg.dry_run:
        return dry_run_of_measuring(cfg, held_out, tests)

    result = folder.result
    measurements = RunEvaluator(cfg, evaluators, held_out, result)
    with folder.recording(), Tracker.open(cfg, folder) as tracker:
        on_it = f" with the adapter {source.adapter}" if source.adapter else ""
        notes = held_out.notes("held-out rows")
        say(f"{cfg.recipe}: {source.base}{on_it} → {folder.path}", *notes)
        folder.add_inputs(*source.inputs, *measured_files(cfg.data), *files_of(cfg))
        set_seed(cfg.seed)
        reset_peak(device)
        with contextlib.ExitStack() as stack:
            with folder.timed("load"):
                engine = stack.enter_context(open_engine(cfg, source, tokenizer, held_out.highest_id))
            with folder.timed("evaluate"):
                found = measurements.of("evaluate", engine)
        found.save(folder.evals, "after")
        if source.gguf is None:  # llama.cpp is a process of its own
            result.peak_memory_mb = peak_memory_mb(device)
        tracker.log(found.figures, step=0, group="eval")
        tracker.log_samples([], found.answers, step=0)

        name = found.headline
        result.headline = {"name": name, "after": found.figures[name]} if name else {}
        result.metrics |= {"after": found.figures, "data": {"held_out": held_out.counts()}}
        tracker.summary(result.metrics)
        write_report(cfg, folder, "Nothing: the model was measured as it is", Evaluation(), found, notes)
    say_end(folder, Evaluation(), found, tracker.note)
    return result
