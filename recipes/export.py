"""Writing a model's int4 files as it is (post-training quantisation), and checking them in their engines."""

from __future__ import annotations

from gemma_tune.cli.dry_run import dry_run_of_measuring
from gemma_tune.config import Config
from gemma_tune.data.tokenized import load_held_out
from gemma_tune.export.int4 import export_all, say_lines
from gemma_tune.models.capacity import check_disk, check_weights, free_memory
from gemma_tune.models.hardware import check_model_hardware
from gemma_tune.models.load import load_config, load_tokenizer, pick_device
from gemma_tune.models.memory import peak_memory_mb, reset_peak
from gemma_tune.models.size import size_of
from gemma_tune.quant.layers import put_on_grid
from gemma_tune.quant.load_for_qat import load_for_qat, source_for_qat
from gemma_tune.quant.plan import plan_of
from gemma_tune.run.folder import RunFolder, RunResult
from gemma_tune.run.terminal import say


def run(cfg: Config) -> RunResult:
    """Rounds, writes every format, and holds each against the rounded model."""
    check_model_hardware(cfg.model)
    folder = RunFolder.open(cfg)
    if folder.finished and not cfg.dry_run:
        print(f"This run is done already: see {folder.path}, or repeat it with overwrite=true.")
        return folder.stored_result()
    source, device = source_for_qat(cfg.model), pick_device(cfg.model)
    shape = size_of(load_config(source))
    check_weights(cfg, shape, free_memory(device))
    check_disk(cfg, shape, source, folder.path)
    tokenizer = load_tokenizer(source, cfg.model.chat_template)
    with folder.timed("data"):
        held_out = load_held_out(cfg.data, tokenizer, cfg.train.max_length, cfg.seed)
    if cfg.dry_run:
        return dry_run_of_measuring(cfg, held_out, {})

    result = folder.result
    reset_peak(device)
    with folder.timed("load"):
        model = load_for_qat(cfg.model, source, tokenizer).eval()
        plan = plan_of(model, cfg.quant.grid, cfg.quant.embedding_grid)
        put_on_grid(model, plan)
    with folder.recording():
        say(f"{cfg.recipe}: {source.base} → {folder.path}", *plan.lines())
        folder.add_inputs(*source.inputs)
        lines = export_all(cfg, folder, model, tokenizer, source, plan, [held_out])
        result.peak_memory_mb = peak_memory_mb(device)
        result.metrics["bits_per_weight"] = plan.bits_per_weight
    say_lines(lines)
    for name, path in result.artifacts.items():
        print(f"  {name:8} {folder.path / path}")
    return result
