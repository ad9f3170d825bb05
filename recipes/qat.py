"""Quantisation-aware training: the weights of the int4 grid are trained to say what the unquantised model says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn
from transformers import set_seed

from gemma_tune.cli.dry_run import dry_run
from gemma_tune.config import Config
from gemma_tune.data.reading import data_files
from gemma_tune.data.tokenized import find_rows, load_rows, notes_of, read_tests
from gemma_tune.evals.evaluation import files_of, prepare_evaluators
from gemma_tune.evals.schedule import RunEvaluator
from gemma_tune.export.int4 import export_all, say_lines
from gemma_tune.models import adapter as adapters
from gemma_tune.models.adapter_files import AdapterSaver
from gemma_tune.models.capacity import check_disk, check_memory, free_memory
from gemma_tune.models.contexts import evaluating, training_attention
from gemma_tune.models.hardware import check_hardware
from gemma_tune.models.load import check_vocabulary, family_of, load_config, load_tokenizer, pick_device
from gemma_tune.models.memory import estimate, peak_memory_mb, reset_peak
from gemma_tune.models.size import size_of
from gemma_tune.models.source import PLAN
from gemma_tune.quant.layers import GridLora, off_grid, put_on_grid
from gemma_tune.quant.load_for_qat import load_for_qat, source_for_qat
from gemma_tune.quant.metrics import held_out_targets, quality_metrics, row_kl
from gemma_tune.quant.plan import plan_of
from gemma_tune.quant.trainer import GridTrainer
from gemma_tune.report import write_report
from gemma_tune.run.folder import RunFolder, RunResult
from gemma_tune.run.manifest import write_json
from gemma_tune.run.paths import atomic_folder
from gemma_tune.run.terminal import say, say_end
from gemma_tune.run.tracking import Tracker
from gemma_tune.train.arguments import mixed_precision, sft_arguments
from gemma_tune.train.best import TrainingEnd
from gemma_tune.train.callbacks import TrackerCallback
from gemma_tune.train.distill import Teacher
from gemma_tune.train.preflight import CheckInputs, preflight
from gemma_tune.train.resume import find_checkpoint
from gemma_tune.train.sft import sft_trainer


def run(cfg: Config) -> RunResult:
    """Trains a model for its int4 grid, measures it without the grid, on it, and trained on it, and exports it."""
    check_hardware(cfg)
    folder = RunFolder.open(cfg)
    if folder.finished and not cfg.dry_run:
        print(f"This run is done already: see {folder.report}, or repeat it with overwrite=true.")
        return folder.stored_result()
    checkpoint = None if folder.finished else find_checkpoint(cfg.train, folder)
    if cfg.dry_run:
        return dry_run(cfg, folder)

    source, device = source_for_qat(cfg.model), pick_device(cfg.model)
    tokenizer = load_tokenizer(source, cfg.model.chat_template)
    shape, mixed, free = size_of(load_config(source)), mixed_precision(cfg, device), free_memory(device)
    check_memory(cfg, shape, mixed, free)
    check_disk(cfg, shape, source, folder.path)
    with folder.timed("data"):
        train, held_out = load_rows(cfg.data, tokenizer, cfg.train.max_length, cfg.seed)
        tests = read_tests(cfg.data) if cfg.eval.answers_tests else {}
        evaluators = prepare_evaluators(cfg, tokenizer, held_out, tests)

    # The unquantised model, and the same weights on the grid
    set_seed(cfg.seed)
    reset_peak(device)
    with folder.timed("load"):
        base = load_for_qat(cfg.model, source, tokenizer)
        check_vocabulary(base, [train.highest_id, held_out.highest_id])
        plan = plan_of(base, cfg.quant.grid, cfg.quant.embedding_grid)
        kept_in = Path(cfg.quant.teacher_folder or folder.path / "teacher").expanduser()
        teacher = Teacher(
            base,
            tokenizer,
            cfg.quant.teacher_top_k,
            live=cfg.quant.teacher == "live",
            cache=kept_in if cfg.quant.keeps_targets else None,
        )
        model = adapters.attach(base, cfg.adapter, replace(source, adapter=None), layers={nn.Linear: GridLora})
        put_on_grid(model, plan)
    counts = adapters.count(model)

    where = partial(find_rows, cfg.data, tokenizer, cfg.train.max_length)
    with folder.nothing_left():
        arguments = sft_arguments(cfg, folder, device)
        mix = cfg.quant.cross_entropy
        trainer = sft_trainer(
            cfg, arguments, model, tokenizer, train, where, GridTrainer, teacher=teacher, cross_entropy=mix
        )
        memory = (estimate(cfg, shape, mixed, train.longest)["total"], free)
        weighs_tokens = trainer.model_accepts_loss_kwargs
        checks = preflight(
            CheckInputs(cfg, model, tokenizer, train, counts, shape, weighs_tokens, memory, frozen=plan.frozen)
        )

    result = folder.result
    measurements = RunEvaluator(cfg, evaluators, held_out, result)
    with folder.recording(), Tracker.open(cfg, folder, checkpoint.step if checkpoint else None) as tracker:
        say(f"{cfg.recipe}: {source.base} → {folder.path}", counts.line(), *plan.lines(), *checks)
        folder.add_inputs(*source.inputs)
        folder.add_inputs(*data_files(cfg.data), *files_of(cfg))
        write_json(folder.path / PLAN, plan.as_dict())

        # What the unquantised model says, and what plain quantisation costs
        rows = list(held_out.rendered[: cfg.quant.max_kl_samples])
        with folder.timed("teacher"), off_grid(model), evaluating(model):
            said = held_out_targets(base, rows)
            teacher.prepare(train.rendered)
        with folder.timed("evaluate"):
            with off_grid(model):
                full = measurements.at("unquantised", model, tokenizer)
            full.save(folder.evals, "unquantised")
            before = measurements.at("before", model, tokenizer)
            before.save(folder.evals, "before")
            plain = row_kl(base, rows, said)
        tracker.log({f"unquantised_{k}": v for k, v in full.figures.items()}, step=0, group="eval")
        tracker.log(before.figures, step=0, group="eval")

        trainer.add_callback(TrackerCallback(tracker))
        trainer.measure = partial(
            measurements.at_step, model, tokenizer, tracker, kernel=base.config._attn_implementation
        )
        folder.training = True
        with folder.timed("train"), training_attention(base, cfg.model.attn_implementation):
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        result.peak_memory_mb = peak_memory_mb(device)
        result.failures |= trainer.passed_over
        ending = TrainingEnd.of(cfg.train, trainer.state)
        say(*ending.lines)
        trainer.release()

        with folder.timed("evaluate"):
            after = measurements.at("after", model, tokenizer)
            after.save(folder.evals, "after")
            trained = row_kl(base, rows, said)
        tracker.log(after.figures, step=ending.kept, group="eval")
        tracker.log_samples(before.answers, after.answers, step=ending.steps)

        if cfg.adapter.peft_type != "none":
            with atomic_folder(folder.adapter) as written:
                AdapterSaver(model, with_towers=family_of(source).has_towers).save(model, tokenizer, written)
            result.artifacts["adapter"] = "adapter"
        lines = export_all(cfg, folder, model, tokenizer, source, plan, [held_out, train])

        # Say what happened
        losses_seen = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        tokens = [row.trained_tokens for row in rows]
        losses = [e.rows.get("held_out_loss", []) for e in (full, before, after)]
        quality = quality_metrics(tokens, plain, trained, losses)
        result.headline = {"name": "mean_kl", "before": quality.get("plain_kl"), "after": quality.get("trained_kl")}
        result.metrics |= {
            "unquantised": full.figures,
            "before": before.figures,
            "after": after.figures,
            "quality": quality,
            "train_loss_first": losses_seen[0],
            "train_loss_last": losses_seen[-1],
            **ending.figures,
            "data": {"training": train.counts(), "held_out": held_out.counts()},
            "weights": vars(counts),
            "bits_per_weight": plan.bits_per_weight,
        }
        tracker.summary(result.metrics)
        notes = [*notes_of(train, held_out), *train.left_out(), *held_out.left_out()]
        write_report(
            cfg, folder, ". ".join([counts.line(), *plan.lines(), *ending.lines]), before, after, notes, checks
        )
    say_end(folder, before, after, tracker.note)
    say_lines(lines)
    return result
