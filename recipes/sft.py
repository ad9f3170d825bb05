"""Supervised fine-tuning: `full_sft`, `lora_sft` and `qlora_sft` are this recipe with other values."""

from __future__ import annotations

from functools import partial

from transformers import set_seed

from gemma_tune.cli.dry_run import dry_run
from gemma_tune.config import Config
from gemma_tune.data.reading import data_files
from gemma_tune.data.stream import stream_rows
from gemma_tune.data.tokenized import find_rows, load_rows, notes_of, read_tests
from gemma_tune.evals.evaluation import Evaluation, files_of, prepare_evaluators
from gemma_tune.evals.schedule import RunEvaluator
from gemma_tune.export import merged, verify
from gemma_tune.models import adapter as adapters
from gemma_tune.models.adapter_files import AdapterSaver
from gemma_tune.models.capacity import check_disk, check_memory, free_memory, memory_warning
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.contexts import training_attention
from gemma_tune.models.four_bit import rounding_gap
from gemma_tune.models.hardware import check_hardware
from gemma_tune.models.load import (
    check_vocabulary,
    family_of,
    load_base,
    load_config,
    load_tokenizer,
    pick_device,
)
from gemma_tune.models.memory import estimate, peak_memory_mb, reset_peak
from gemma_tune.models.size import size_of
from gemma_tune.models.source import find_source
from gemma_tune.report import write_report
from gemma_tune.run.folder import RunFolder, RunResult
from gemma_tune.run.paths import atomic_folder
from gemma_tune.run.terminal import say, say_end
from gemma_tune.run.tracking import Tracker
from gemma_tune.train.arguments import mixed_precision, sft_arguments
from gemma_tune.train.best import TrainingEnd
from gemma_tune.train.callbacks import TrackerCallback
from gemma_tune.train.preflight import CheckInputs, preflight, undertrained_warning
from gemma_tune.train.resume import find_checkpoint
from gemma_tune.train.sft import sft_trainer


def run(cfg: Config) -> RunResult:
    """Tunes a model on conversations or text, evaluates it before and after, and exports it."""
    check_hardware(cfg)
    folder = RunFolder.open(cfg)
    if folder.finished and not cfg.dry_run:
        print(f"This run is done already: see {folder.report}, or repeat it with overwrite=true.")
        return folder.stored_result()
    checkpoint = None if folder.finished else find_checkpoint(cfg.train, folder)
    if cfg.dry_run:
        return dry_run(cfg, folder)

    # What surely doesn't fit is said before a long file is read
    source, device = find_source(cfg.model), pick_device(cfg.model)
    tokenizer = load_tokenizer(source, cfg.model.chat_template)
    shape, mixed, free = size_of(load_config(source)), mixed_precision(cfg, device), free_memory(device)
    check_memory(cfg, shape, mixed, free)
    check_disk(cfg, shape, source, folder.path)

    # Rows as token ids and labels
    with folder.timed("data"):
        load = stream_rows if cfg.data.streaming else load_rows
        train, held_out = load(cfg.data, tokenizer, cfg.train.max_length, cfg.seed)
        tests = read_tests(cfg.data) if cfg.eval.answers_tests else {}
        evaluators = prepare_evaluators(cfg, tokenizer, held_out, tests)
    longest = cfg.train.max_length if cfg.data.streaming else train.longest
    notes = list(filter(None, [memory_warning(cfg, shape, mixed, longest, free)]))

    # The base, 4-bit where asked for, and what is trained of it
    set_seed(cfg.seed)
    reset_peak(device)
    with folder.timed("load"):
        base = load_base(cfg.model, source, tokenizer)
        check_vocabulary(base, [train.highest_id, held_out.highest_id])
        frozen = cfg.adapter.peft_type != "none"
        warning = undertrained_warning(base, tokenizer, train) if frozen else None
        notes += [warning] if warning else []
        model = adapters.attach(base, cfg.adapter, source)
    counts = adapters.count(model)
    saver = AdapterSaver(model, with_towers=family_of(source).has_towers)
    arguments = sft_arguments(cfg, folder, device)
    where = partial(find_rows, cfg.data, tokenizer, cfg.train.max_length)
    needs = estimate(cfg, shape, mixed, longest)["total"]
    with folder.nothing_left():
        trainer = sft_trainer(cfg, arguments, model, tokenizer, train, where)
        weighs_tokens = trainer.model_accepts_loss_kwargs
        checks = preflight(CheckInputs(cfg, model, tokenizer, train, counts, shape, weighs_tokens, (needs, free)))

    # From here on the run folder is written
    result = folder.result
    measurements = RunEvaluator(cfg, evaluators, held_out, result)
    with folder.recording(), Tracker.open(cfg, folder, checkpoint.step if checkpoint else None) as tracker:
        begun = f"{cfg.recipe}: {source.base} → {folder.path}"
        say(begun, counts.line(), *notes_of(train, held_out), *notes, *checks)
        if source.folder is None:
            folder.inputs[source.base] = f"commit {model.config._commit_hash}"
        folder.add_inputs(*source.inputs)
        folder.add_inputs(*data_files(cfg.data), hashed=not cfg.data.streaming)
        folder.add_inputs(*files_of(cfg))
        if cfg.data.dataset_name:
            folder.inputs[cfg.data.dataset_name] = f"revision {cfg.data.revision or 'main'}"

        before = Evaluation()
        if cfg.eval.before:
            with folder.timed("evaluate"):
                before = measurements.at("before", model, tokenizer)
        before.save(folder.evals, "before")
        if not checkpoint:
            tracker.log(before.figures, step=0, group="eval")

        trainer.add_callback(TrackerCallback(tracker))
        kernel = base.config._attn_implementation
        trainer.measure = partial(measurements.at_step, model, tokenizer, tracker, kernel=kernel)
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
        tracker.log(after.figures, step=ending.kept, group="eval")
        tracker.log_samples(before.answers, after.answers, step=ending.steps)

        # Keep the adapter, export, and load the export as anyone would
        if cfg.adapter.peft_type != "none":
            with atomic_folder(folder.adapter) as written:
                saver.save(model, tokenizer, written)
            result.artifacts["adapter"] = "adapter"
        if "merged" in cfg.export.formats:
            measure = partial(measurements.at, "export")
            reference = verify.take_reference(cfg, model, tokenizer, train, held_out, measure)
            with folder.timed("export"), atomic_folder(folder.export("merged")) as written:
                merged.export(model, tokenizer, written, cfg.export, source)
            with folder.timed("verify"):
                result.metrics["export"] = verify.verify_merged(folder.export("merged"), reference, device)
            result.artifacts["merged"] = "export/merged"
            if cfg.model.load_in_4bit:
                gap = rounding_gap(model.get_base_model(), CheckpointFiles.of(source, family_of(source)))
                result.metrics["export"]["four_bit_gap"] = gap

        # Say what happened
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        name, (first, last) = "train_loss", (losses[0], losses[-1])
        if before.headline:
            name = before.headline
            first, last = before.figures[name], after.figures.get(name)
        result.headline = {"name": name, "before": first, "after": last}
        result.metrics |= {
            "before": before.figures,
            "after": after.figures,
            **ending.figures,
            "train_loss_first": losses[0],
            "train_loss_last": losses[-1],
            "data": {"training": train.counts(), "held_out": held_out.counts()},
            "weights": vars(counts),
        }
        tracker.summary(result.metrics)
        # Of a stream more is known by now
        notes = [*notes_of(train, held_out), *notes, *train.left_out(), *held_out.left_out()]
        write_report(cfg, folder, ". ".join([counts.line(), *ending.lines]), before, after, notes, checks)
    say_end(folder, before, after, tracker.note)
    return result
