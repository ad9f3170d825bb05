"""Training with rewards: `grpo`, its variants and `rloo` are this recipe with other values."""

from __future__ import annotations

from gemma_tune.config import Config
from gemma_tune.data.reading import read_tests
from gemma_tune.evals.evaluation import prepare_evaluators
from gemma_tune.models.hardware import check_vllm
from gemma_tune.models.load import family_of
from gemma_tune.rl.rewards import check_own_rewards, scorer_of, size_of_reward_model
from gemma_tune.rl.tasks import check_number, read_tasks
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.steps.data import NO_ROWS, Data
from gemma_tune.steps.setup import Setup, loading, look_at_model, set_up


def look(cfg: Config) -> Setup:
    """What is known before any weight is loaded. A reward function that can't be called is refused here."""
    check_own_rewards(cfg)
    return look_at_model(cfg, beside=size_of_reward_model)


def read(cfg: Config, setup: Setup) -> Data:
    """Prompts, and the test rows that the rewards measure. A dry run reads them by this function, too."""
    completion = cfg.train.max_completion_length or 0
    tests = read_tests(cfg.data)
    tasks = read_tasks(cfg.data, tests, setup.tokenizer, setup.context - completion)
    check_own_rewards(cfg, tasks.shown())
    check_number(tasks, cfg.train, cfg.data.max_train_samples, cfg.processes)
    evaluators = prepare_evaluators(cfg, setup.tokenizer, NO_ROWS, tests)
    return Data(tasks, NO_ROWS, evaluators, tests, tasks.longest_prompt + completion)


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Trains a model on its own completions, by rewards, and measures each reward before and after on test rows."""
    # A dry run reads rows alone, and waits for none of these
    from gemma_tune.models.adapters.adapter import attach, count
    from gemma_tune.models.load_weights import load_base
    from gemma_tune.rl.arguments import rl_arguments
    from gemma_tune.rl.completion_log import CompletionLog
    from gemma_tune.rl.reward_hacking import RewardHackingMonitor
    from gemma_tune.rl.trainer import rl_trainer
    from gemma_tune.steps.served import check_served_adapter
    from gemma_tune.steps.session import session
    from gemma_tune.steps.towers import open_media
    from gemma_tune.train.preflight import CHECKS_FOR_PROMPTS, preflight

    setup = set_up(cfg, folder, look)
    check_vllm(cfg, family_of(setup.source).has_towers)
    with folder.timed("data"):
        data = read(cfg, setup)
        scorer = scorer_of(cfg, setup.device, data.train.shown())

    setup = setup.with_media(cfg, data.train)
    with loading(cfg, folder, setup):
        base = load_base(cfg.model, setup.source, setup.tokenizer)
        data.check_vocabulary(base)
        model = attach(base, setup.adapter, setup.source)
        towers = open_media(cfg, setup, data, model, data.train.most_media > 0)
    completions = CompletionLog(folder.evals / "completions.jsonl")
    counts = count(model)  # before the trainer adds a reference adapter
    with folder.leaving_no_empty_folder():
        arguments = rl_arguments(cfg, folder, setup.device, base.generation_config.eos_token_id)
        trainer = rl_trainer(cfg, arguments, model, setup.tokenizer, data.train, scorer, completions.add)
        prompts = data.train.rows(1000)
        checks = preflight(setup.check_inputs(cfg, model, counts, prompts, data.longest), CHECKS_FOR_PROMPTS)

    # From here on the run folder is written
    weighted = "reward: " + ", ".join(f"{weight:g} × {name}" for name, weight in scorer.weights.items())
    with session(cfg, folder, setup, data, model, counts, checks, [weighted], towers) as training:
        before = training.measure("before")
        monitor = RewardHackingMonitor(before)
        trainer.add_callback(monitor)
        completions.begin(folder.resumed.step if folder.resumed else None)
        end = training.fit(trainer)
        after = training.measure("after")
        training.tracker.log_completions(completions.shown(), step=end.steps)
        folder.result.artifacts["completions"] = "eval/completions.jsonl"
        training.warn(*monitor.warnings(after))
        training.save_adapter()
        training.export(samples=data.train.rows(16))
        check_served_adapter(training, samples=data.train.rows(16))
        name = after.headline or "reward"
        training.headline = {"name": name, "before": before.figures.get(name), "after": after.figures.get(name)}
        training.finish(**monitor.figures)
    return folder.result
