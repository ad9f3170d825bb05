"""Writing a model's int4 files as it is (post-training quantization), and checking them in their engines."""

from __future__ import annotations

from dataclasses import replace

from gemma_tune.config import Config
from gemma_tune.data.reading import measured_files
from gemma_tune.export.formats import export_all, say_lines
from gemma_tune.models.adapter import check_source
from gemma_tune.models.capacity import check_disk, check_weights, free_memory
from gemma_tune.models.hardware import check_model_hardware, pick_device
from gemma_tune.models.load import load_config
from gemma_tune.models.memory import peak_memory_mb, reset_peak
from gemma_tune.models.size import size_of
from gemma_tune.quant.layers import put_on_grid
from gemma_tune.quant.load_float32 import find_full_weights, load_float32
from gemma_tune.quant.plan import plan_of
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.run.terminal import say
from gemma_tune.steps.inputs import note_inputs
from gemma_tune.steps.measure_only import ToMeasure, to_measure


def read(cfg: Config, folder: RunFolder) -> list[ToMeasure]:
    """The model and the rows that its files are compared on; refuses what surely does not fit."""
    check_model_hardware(cfg.model)
    source = find_full_weights(cfg.model)
    size = size_of(config := load_config(source))
    check_source(cfg.model, cfg.adapter, source, config, trains=False, merges=True)
    check_weights(cfg, size, free_memory(pick_device(cfg.model)))
    check_disk(cfg, size, source, folder.path)
    with folder.timed("data"):
        return [to_measure(cfg, source, evaluators=False)]


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Quantizes, writes every format, and compares each file with the quantized model."""
    asked = read(cfg, folder)[0]
    source, tokenizer, device = asked.source, asked.tokenizer, pick_device(cfg.model)
    reset_peak(device)
    with folder.timed("load"):
        model = load_float32(cfg.model, source, tokenizer, asked.held_out.rendered).eval()
        plan = plan_of(model, cfg.quant.grid, cfg.quant.embedding_grid)
        put_on_grid(model, plan)
    result = folder.result
    with folder.recording():
        say(f"{cfg.recipe}: {source.base} → {folder.path}", *plan.lines())
        note_inputs(cfg, folder, source, measured_files(replace(cfg.data, test_files={})))
        lines = export_all(cfg, folder, model, tokenizer, source, plan, [asked.held_out])
        result.peak_memory_mb = peak_memory_mb(device)
        result.metrics["bits_per_weight"] = plan.bits_per_weight
    say_lines(lines)
    say("Files:", *(f"  {name:8} {folder.path / path}" for name, path in result.artifacts.items()))
    return result
