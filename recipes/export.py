"""Writing a model's files without training it: rounded to int4, or as it is; each is checked in its engine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gemma_tune.cli.stages import of_measuring
from gemma_tune.config import Config
from gemma_tune.data.reading import measured_files
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.export.formats import export_all, say_lines
from gemma_tune.export.unquantized import export_unquantized
from gemma_tune.export.writable import check_writable
from gemma_tune.models.check_source import check_source
from gemma_tune.models.estimate.capacity import check_disk, check_weights, free_memory
from gemma_tune.models.estimate.memory import peak_memory_mb, reset_peak
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.hardware import check_model_hardware, pick_device
from gemma_tune.models.load import load_config
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import find_source
from gemma_tune.quant.activations import quantize
from gemma_tune.quant.load_float32 import find_full_weights, load_float32
from gemma_tune.report import write_report
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.run.terminal import say, say_files
from gemma_tune.steps.data import test_notes
from gemma_tune.steps.grid_plan import grid_plan
from gemma_tune.steps.inputs import note_inputs
from gemma_tune.steps.measure_only import Measurement, prepare_measurement
from gemma_tune.steps.quality import measure_files, quality_measurement, rows_to_check


def read(cfg: Config, folder: RunFolder) -> list[Measurement]:
    """The model and the rows that its files are measured and compared on; refuses what surely does not fit."""
    check_model_hardware(cfg.model)
    name, rounds = cfg.model.model_name_or_path, cfg.quant.grid != "none"
    source = find_full_weights(cfg.model) if rounds else find_source(cfg.model)
    size = size_of(config := load_config(source))
    check_source(cfg.model, cfg.adapter, source, config, trains=False, merges=True, packed=cfg.quant.continues)
    check_weights(cfg, size, free_memory(pick_device(cfg.model)))
    check_disk(cfg, size, source, folder.path)
    with folder.timed("data"):
        asked = quality_measurement(cfg, name) or prepare_measurement(of_measuring(cfg, name), source, evaluators=False)
    check_writable(cfg, config, asked.tokenizer, source)
    return [replace(asked, source=source)]


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Quantizes where asked to, writes every format, compares each file with the model, measures it and its source."""
    asked = read(cfg, folder)[0]
    source, tokenizer, device = asked.source, asked.tokenizer, pick_device(cfg.model)
    reset_peak(device)
    with folder.timed("load"):
        plan = None
        if cfg.quant.grid == "none":  # as it was trained: in 4 bit, too, and with its adapter unmerged
            model = load_model(asked.cfg.model, source, tokenizer)
        else:
            model = load_float32(cfg.model, source, tokenizer, asked.held_out.rendered, cfg.quant.continues).eval()
            plan = grid_plan(model, cfg.quant, source)
            quantize(model, plan, cfg.quant, rows_to_check(asked).rendered, tokenizer)
    result, notes = folder.result, [*asked.held_out.notes("held-out rows"), *test_notes(asked.tests)]
    with folder.recording():
        of_plan = plan.lines() if plan else ["in no quantization format (quant=none)"]
        say(asked.rows, f"{cfg.recipe}: {source.base} → {folder.path}", *of_plan, *notes)
        note_inputs(cfg, folder, source, measured_files(cfg.data), asked.media_files)
        rows = rows_to_check(asked)
        if plan:
            lines = export_all(cfg, folder, model, tokenizer, source, plan, [rows])
            result.metrics["planned_bits_per_weight"] = plan.bits_per_weight
            trained = f"Nothing: the weights were rounded to {plan.name} as they are. {'. '.join(of_plan)}"
        else:
            given = (replace(cfg, model=asked.cfg.model), folder, model, tokenizer, source)
            lines = export_unquantized(*given, rows, rows, lambda *_: Evaluation(), source.adapter)
            trained = "Nothing: the weights were written as they are"
        result.peak_memory_mb = peak_memory_mb(device)
        report = partial(write_report, cfg, folder, trained, Evaluation(), Evaluation(), [asked.rows, *notes])
        report()  # the files are complete; measuring them takes long, and may be stopped
        measure_files(cfg, folder, model, source)
        report()
    say_lines(lines)
    say_files(folder.path, result.metrics)
    named = {"report": "report.md", "page": "report.html", **result.artifacts}
    say("Files:", *(f"  {name:8} {folder.path / path}" for name, path in named.items()))
    return result
