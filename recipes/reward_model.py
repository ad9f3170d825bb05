"""A reward model: a score for answers, learned from pairs of a better and a worse one."""

from __future__ import annotations

from typing import Any

from gemma_tune.config import Config
from gemma_tune.data.pairs import load_pairs
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import REWARD_MODEL, atomic_folder
from gemma_tune.run.result import RunResult
from gemma_tune.steps.data import Data
from gemma_tune.steps.setup import Setup, loading, set_up


def read(cfg: Config, setup: Setup) -> Data:
    """Pairs as token ids, none of them cut: the score is read at an answer's end. A dry run reads them by this, too."""
    train, held_out = load_pairs(cfg.data, setup.tokenizer, cfg.train.max_length, cfg.seed, for_reward=True)
    return Data(train, held_out, {}, {}, 2 * train.longest)


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Trains a classifier with one label to score the better answer of a pair higher, and exports it."""
    # A dry run reads rows alone, and waits for none of these
    from gemma_tune.evals.reward_scores import score_pairs
    from gemma_tune.export import reward_model
    from gemma_tune.models.adapters.adapter import attach, count
    from gemma_tune.models.adapters.merging import ROWS, check_merge
    from gemma_tune.models.classifier import HEAD, load_classifier
    from gemma_tune.steps.session import session
    from gemma_tune.train.preflight import CHECKS_FOR_REWARD_MODEL, preflight
    from gemma_tune.train.reward import reward_arguments, reward_trainer, score_checks

    setup = set_up(cfg, folder)
    with folder.timed("data"):
        data = read(cfg, setup)
    batch = cfg.train.per_device_eval_batch_size

    def score(when: str, model: Any, tokenizer: Any) -> Evaluation:
        return score_pairs(model, tokenizer, data.held_out, batch)

    # The base under a new head, and its adapter
    with loading(cfg, folder, setup):
        base = load_classifier(cfg.model, setup.source, setup.tokenizer)
        data.check_vocabulary(base)
        model = attach(base, cfg.adapter, setup.source, trained_whole=[HEAD])
    counts = count(model)
    with folder.leaving_no_empty_folder():
        checks = preflight(setup.check_inputs(cfg, model, counts, data.train, data.longest), CHECKS_FOR_REWARD_MODEL)
        arguments = reward_arguments(cfg, folder, setup.device)
        trainer = reward_trainer(cfg, arguments, model, setup.tokenizer, data.train)
        checks += score_checks(model, setup.tokenizer, data.train)

    # From here on the run folder is written
    with session(cfg, folder, setup, data, model, counts, checks, measure_at=score) as training:
        training.measure("before")
        training.fit(trainer)
        training.measure("after")
        training.save_adapter()
        training.go_on_alone()
        if cfg.export.formats:
            place = folder.path / REWARD_MODEL
            model = training.model  # that of the first process, whole
            with folder.timed("verify"):
                check_merge(model, data.train.dataset[:ROWS]["chosen_ids"])
            with folder.timed("export"), atomic_folder(place) as target:
                reward_model.export(model, setup.tokenizer, target, cfg.export)
            with folder.timed("verify"):
                figures = reward_model.verify(place, model, cfg.export, data.train, data.held_out, batch)
            folder.result.metrics["export"] = figures
            folder.result.artifacts["reward_model"] = REWARD_MODEL
        training.finish()
    return folder.result
