"""Quantization-aware training: weights in a quantization format learn the probabilities of the unquantized model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gemma_tune.config import Config
from gemma_tune.data.loading import find_rows, load_rows
from gemma_tune.quant.load_float32 import find_full_weights, load_float32
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.steps.data import Data, with_evaluators
from gemma_tune.steps.setup import Setup, loading, look_at_model, set_up

look = partial(look_at_model, find=find_full_weights, merges=True)


def read(cfg: Config, setup: Setup) -> Data:
    """Conversations or text as token ids and labels. A dry run reads them by this function, too."""
    train, held_out = load_rows(cfg.data, setup.tokenizer, cfg.train.max_length, cfg.seed)
    return with_evaluators(cfg, setup.tokenizer, train, held_out, train.longest)


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Trains quantized weights, measures the model unquantized, quantized and trained, and exports it."""
    # A dry run reads rows alone, and waits for none of these
    from gemma_tune.export.formats import export_all, say_lines
    from gemma_tune.models.adapters.adapter import attach, count
    from gemma_tune.models.contexts import evaluating
    from gemma_tune.quant.activations import quantize
    from gemma_tune.quant.layers import GRID_LAYERS, off_grid
    from gemma_tune.quant.metrics import held_out_targets, kl_headline, quality_metrics, row_kl
    from gemma_tune.quant.trainer import GridTrainer
    from gemma_tune.run.terminal import say_files
    from gemma_tune.steps.grid_plan import grid_plan
    from gemma_tune.steps.quality import measure_files
    from gemma_tune.steps.session import session
    from gemma_tune.steps.towers import open_media
    from gemma_tune.train.arguments import sft_arguments
    from gemma_tune.train.distill import open_teacher
    from gemma_tune.train.preflight import preflight
    from gemma_tune.train.sft import sft_trainer

    setup, q = set_up(cfg, folder, look), cfg.quant
    with folder.timed("data"):
        data = read(cfg, setup)

    # The unquantized model as teacher, and the same weights in the quantization format
    with loading(cfg, folder, setup):
        base = load_float32(cfg.model, setup.source, setup.tokenizer, data.train.rendered, q.continues)
        data.check_vocabulary(base)
        towers = open_media(cfg, setup, data, base)
        plan = grid_plan(base, q, setup.source)
        # Before an adapter is attached: the teacher's digest is that of the bare weights
        teacher = open_teacher(q, base, setup.tokenizer, folder.path)
        model = attach(base, cfg.adapter, replace(setup.source, adapter=None), layers=GRID_LAYERS)
        quantize(model, plan, q, data.train.rendered, setup.tokenizer)
    counts = count(model)
    with folder.leaving_no_empty_folder():
        arguments = sft_arguments(cfg, folder, setup.device)
        where = partial(find_rows, cfg.data, setup.tokenizer, cfg.train.max_length)
        options = {"teacher": teacher, "cross_entropy": q.cross_entropy}
        trainer = sft_trainer(cfg, arguments, model, setup.tokenizer, data.train, where, GridTrainer, **options)
        weighs_tokens = trainer.model_accepts_loss_kwargs
        checks = preflight(setup.check_inputs(cfg, model, counts, data.train, data.longest, weighs_tokens, plan.frozen))

    # From here on the run folder is written
    with session(cfg, folder, setup, data, model, counts, checks, lines=[*plan.lines(), *towers]) as training:
        plan.save(folder.path)
        rows = list(data.held_out.rendered[: q.max_kl_samples])
        with off_grid(model):
            with folder.timed("teacher"), evaluating(model):
                targets = held_out_targets(base, rows, setup.tokenizer)
                teacher.prepare(data.train.rendered)
            full = training.measure("unquantised")
        before, quantized = training.measure("before"), row_kl(base, rows, targets, setup.tokenizer)  # on the grid now
        training.fit(trainer)
        after, trained = training.measure("after"), row_kl(base, rows, targets, setup.tokenizer)
        training.save_adapter()
        training.go_on_alone()
        lines = export_all(cfg, folder, model, setup.tokenizer, setup.source, plan, [data.held_out, data.train])
        measure_files(cfg, folder, model, setup.source, known=full)
        losses = [e.rows.get("held_out_loss", []) for e in (full, before, after)]
        quality = quality_metrics([row.trained_tokens for row in rows], quantized, trained, losses)
        training.headline = kl_headline(quality)
        training.finish(**{"unquantised": full.figures}, quality=quality, planned_bits_per_weight=plan.bits_per_weight)
    say_lines(lines)
    say_files(folder.path, folder.result.metrics)
    return folder.result
