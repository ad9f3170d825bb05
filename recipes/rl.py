"""Training with rewards: `grpo`, its variants and `rloo` are this recipe with other values."""

from __future__ import annotations

from functools import partial

from transformers import set_seed

from gemma_tune.cli.dry_run import dry_run
from gemma_tune.config import Config
from gemma_tune.data.reading import data_files
from gemma_tune.data.tokenized import TokenizedRows, read_tests, read_training_prompts
from gemma_tune.evals.evaluation import Evaluation, files_of, prepare_evaluators
from gemma_tune.evals.schedule import RunEvaluator
from gemma_tune.export import merged, verify
from gemma_tune.models import adapter as adapters
from gemma_tune.models.adapter_files import AdapterSaver
from gemma_tune.models.capacity import check_disk, check_memory, free_memory, memory_warning
from gemma_tune.models.contexts import training_attention
from gemma_tune.models.hardware import check_hardware, check_vllm
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
from gemma_tune.rl.arguments import rl_arguments
from gemma_tune.rl.completion_log import CompletionLog
from gemma_tune.rl.reward_hacking import RewardHackingMonitor
from gemma_tune.rl.rewards import scorer_of, size_of_reward_model
from gemma_tune.rl.tasks import Tasks
from gemma_tune.rl.trainer import rl_trainer
from gemma_tune.run.folder import RunFolder, RunResult
from gemma_tune.run.paths import atomic_folder
from gemma_tune.run.terminal import say, say_end
from gemma_tune.run.tracking import Tracker
from gemma_tune.train.arguments import mixed_precision
from gemma_tune.train.best import TrainingEnd
from gemma_tune.train.callbacks import TrackerCallback
from gemma_tune.train.preflight import WITHOUT_ANSWERS, CheckInputs, preflight
from gemma_tune.train.resume import find_checkpoint


def run(cfg: Config) -> RunResult:
    """Trains a model on what it says itself, by rewards, and measures each reward before and after on held-out rows."""
    check_hardware(cfg)
    folder = RunFolder.open(cfg)
    if folder.finished and not cfg.dry_run:
        print(f"This run is done already: see {folder.report}, or repeat it with overwrite=true.")
        return folder.stored_result()
    checkpoint = None if folder.finished else find_checkpoint(cfg.train, folder, cfg.train.generation_period)
    if cfg.dry_run:
        return dry_run(cfg, folder)

    source, device = find_source(cfg.model), pick_device(cfg.model)
    tokenizer = load_tokenizer(source, cfg.model.chat_template)
    config = load_config(source)
    check_vllm(cfg, family_of(source).has_towers)
    shape, mixed, free = size_of(config), mixed_precision(cfg, device), free_memory(device)
    beside = size_of_reward_model(cfg)
    check_memory(cfg, shape, mixed, free, beside)
    check_disk(cfg, shape, source, folder.path)

    # Prompts, and the rewards that will judge the completions
    with folder.timed("data"):
        room = config.get_text_config().max_position_embeddings - (cfg.train.max_completion_length or 0)
        tests = read_tests(cfg.data)
        records, prompts = read_training_prompts(cfg.data, tests)
        tasks = Tasks(records, tokenizer, room, prompts.refused if cfg.data.skips_rows else None)
        evaluators = prepare_evaluators(cfg, tokenizer, TokenizedRows(), tests)
        scorer = scorer_of(cfg, device)

    set_seed(cfg.seed)
    reset_peak(device)
    with folder.timed("load"):
        base = load_base(cfg.model, source, tokenizer)
        check_vocabulary(base, [tasks.highest_id])
        model = adapters.attach(base, cfg.adapter, source)
    counts = adapters.count(model)
    saver = AdapterSaver(model, with_towers=family_of(source).has_towers)
    longest = tasks.longest_prompt + (cfg.train.max_completion_length or 0)
    needs = estimate(cfg, shape, mixed, longest, beside)["total"]
    samples = CompletionLog(folder.evals / "completions.jsonl")
    with folder.nothing_left():
        arguments = rl_arguments(cfg, folder, device, base.generation_config.eos_token_id)
        trainer = rl_trainer(cfg, arguments, model, tokenizer, tasks, scorer, samples.add)
        checks = preflight(
            CheckInputs(cfg, model, tokenizer, tasks.rows(1000), counts, shape, True, (needs, free)), WITHOUT_ANSWERS
        )

    # From here on the run folder is written
    result = folder.result
    measurements = RunEvaluator(cfg, evaluators, TokenizedRows(), result)
    with folder.recording(), Tracker.open(cfg, folder, checkpoint.step if checkpoint else None) as tracker:
        mixture = ", ".join(f"{weight:g} × {name}" for name, weight in scorer.weights.items())
        notes = [
            *filter(None, [memory_warning(cfg, shape, mixed, longest, free, beside)]),
            *prompts.notes("prompts"),
            f"reward: {mixture}",
            f"prompts: {len(tasks):,}, of {tasks.longest_prompt:,} tokens at most",
        ]
        say(f"{cfg.recipe}: {source.base} → {folder.path}", counts.line(), *notes, *checks)
        if source.folder is None:
            folder.inputs[source.base] = f"commit {model.config._commit_hash}"
        folder.add_inputs(*source.inputs, *data_files(cfg.data), *files_of(cfg))

        before = Evaluation()
        if cfg.eval.before:
            with folder.timed("evaluate"):
                before = measurements.at("before", model, tokenizer)
        before.save(folder.evals, "before")
        if not checkpoint:
            tracker.log(before.figures, step=0, group="eval")

        watch = RewardHackingMonitor(before)
        trainer.add_callback(TrackerCallback(tracker))
        trainer.add_callback(watch)
        kernel = base.config._attn_implementation
        trainer.measure = partial(measurements.at_step, model, tokenizer, tracker, kernel=kernel)
        folder.training = True
        samples.begin(checkpoint.step if checkpoint else None)
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
        tracker.log_completions(samples.shown(), step=ending.steps)
        warnings = watch.warnings(after)
        notes += warnings
        result.artifacts["completions"] = "eval/completions.jsonl"

        # Keep the adapter, export, and load the export as anyone would
        if cfg.adapter.peft_type != "none":
            with atomic_folder(folder.adapter) as written:
                saver.save(model, tokenizer, written)
            result.artifacts["adapter"] = "adapter"
        if "merged" in cfg.export.formats:
            measure = partial(measurements.at, "export")
            reference = verify.take_reference(cfg, model, tokenizer, tasks.rows(16), TokenizedRows(), measure)
            with folder.timed("export"), atomic_folder(folder.export("merged")) as written:
                merged.export(model, tokenizer, written, cfg.export, source)
            with folder.timed("verify"):
                result.metrics["export"] = verify.verify_merged(folder.export("merged"), reference, device)
            result.artifacts["merged"] = "export/merged"

        # Say what happened
        name = after.headline or "reward"
        result.headline = {"name": name, "before": before.figures.get(name), "after": after.figures.get(name)}
        result.metrics |= {
            "before": before.figures,
            "after": after.figures,
            **ending.figures,
            **watch.figures,
            "data": {"training": {"rows": len(tasks), "rows_skipped": len(prompts.left_out())}},
            "weights": vars(counts),
        }
        tracker.summary(result.metrics)
        write_report(cfg, folder, ". ".join([counts.line(), *ending.lines]), before, after, notes, checks)
    say(*warnings)
    say_end(folder, before, after, tracker.note)
    return result
