"""Direct preference optimisation: of two answers to a prompt the better one becomes likelier than the worse one."""

from __future__ import annotations

from gemma_tune.config import Config
from gemma_tune.data.pairs import load_pairs
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.steps.data import Data, with_evaluators
from gemma_tune.steps.setup import Setup, loading, set_up


def read(cfg: Config, setup: Setup) -> Data:
    """Pairs as token ids. A batch holds both answers of a pair, each behind its prompt."""
    train, held_out = load_pairs(cfg.data, setup.tokenizer, cfg.train.max_length, cfg.seed)
    return with_evaluators(cfg, setup.tokenizer, train, held_out, 2 * train.longest)


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Tunes a model on pairs of answers, measures before and after which one it finds likelier, and exports it."""
    # A dry run reads rows alone, and waits for none of these
    from gemma_tune.models.adapters.adapter import attach, count
    from gemma_tune.models.contexts import training_kernels
    from gemma_tune.models.load_weights import load_base
    from gemma_tune.steps.served import check_served_adapter
    from gemma_tune.steps.session import session
    from gemma_tune.steps.towers import open_media
    from gemma_tune.train.dpo import dpo_arguments, dpo_trainer, likelihood_warning
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

    # The checks come first: making the trainer computes the reference's log-probabilities of all pairs, which is slow
    with folder.leaving_no_empty_folder():
        arguments = dpo_arguments(cfg, folder, setup.device)
        checks = preflight(setup.check_inputs(cfg, model, counts, data.train, data.longest), CHECKS_FOR_PAIRS)
        with folder.timed("reference"), training_kernels(base, cfg):
            trainer = dpo_trainer(cfg, arguments, model, setup.tokenizer, data.train)

    # From here on the run folder is written
    with session(cfg, folder, setup, data, model, counts, checks, notes, towers) as training:
        before = training.measure("before")
        training.fit(trainer)
        after = training.measure("after")
        training.save_adapter()
        training.export()
        check_served_adapter(training)
        if warning := likelihood_warning(before.figures, after.figures):
            training.warn(warning)
        training.finish()
    return folder.result
