"""Kahneman-Tversky optimisation: learns from answers that are each labelled good or bad, without pairs."""

from __future__ import annotations

from gemma_tune.config import Config
from gemma_tune.data.unpaired import load_labelled
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.steps.data import Data, with_evaluators
from gemma_tune.steps.setup import Setup, loading, set_up
from gemma_tune.train.kto_answers import check_answers


def read(cfg: Config, setup: Setup) -> Data:
    """Labelled answers as token ids; of a pair both answers. A dry run reads them by this function, too."""
    train, held_out = load_labelled(cfg.data, setup.tokenizer, cfg.train.max_length, cfg.seed)
    check_answers(cfg, train)
    return with_evaluators(cfg, setup.tokenizer, train, held_out, train.longest)


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Tunes a model on good and bad answers, measures before and after how likely it finds them, and exports it."""
    # A dry run reads rows alone, and waits for none of these
    from gemma_tune.models.adapters.adapter import attach, count
    from gemma_tune.models.contexts import training_kernels
    from gemma_tune.models.load_weights import load_base
    from gemma_tune.steps.served import check_served_adapter
    from gemma_tune.steps.session import session
    from gemma_tune.steps.towers import open_media
    from gemma_tune.train.kto import kto_arguments, kto_trainer
    from gemma_tune.train.preflight import CHECKS_FOR_PAIRS, preflight
    from gemma_tune.train.undertrained import undertrained_warning

    setup = set_up(cfg, folder)
    with folder.timed("data"):
        data = read(cfg, setup)
    setup = setup.with_media(cfg, data.train)

    # The base, in 4 bit where asked for, and its adapter
    with loading(cfg, folder, setup):
        base = load_base(cfg.model, setup.source, setup.tokenizer)
        data.check_vocabulary(base)
        warning = undertrained_warning(base, setup.tokenizer, data.train, setup.adapter)
        model = attach(base, setup.adapter, setup.source)
        towers = open_media(cfg, setup, data, model)
    notes, counts = [warning] if warning else [], count(model)

    # The checks come first: making the trainer computes the reference's log-probabilities of all answers, which is slow
    with folder.leaving_no_empty_folder():
        arguments = kto_arguments(cfg, folder, setup.device)
        checks = preflight(setup.check_inputs(cfg, model, counts, data.train, data.longest), CHECKS_FOR_PAIRS)
        with folder.timed("reference"), training_kernels(base, cfg):
            trainer = kto_trainer(cfg, arguments, model, setup.tokenizer, data.train)

    # From here on the run folder is written
    with session(cfg, folder, setup, data, model, counts, checks, notes, towers) as training:
        training.measure("before")
        training.fit(trainer)
        training.measure("after")
        training.save_adapter()
        training.export()
        check_served_adapter(training)
        training.finish()
    return folder.result
