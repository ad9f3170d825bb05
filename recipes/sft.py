"""Supervised fine-tuning: `full_sft`, `lora_sft` and `qlora_sft` are this recipe with other values."""

from __future__ import annotations

from functools import partial

from gemma_tune.config import Config
from gemma_tune.data.loading import find_rows, load_rows
from gemma_tune.data.stream import stream_rows
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.steps.data import Data, with_evaluators
from gemma_tune.steps.setup import Setup, loading, set_up


def read(cfg: Config, setup: Setup) -> Data:
    """Conversations or text as token ids and labels. A dry run reads them by this function, too."""
    load = stream_rows if cfg.data.streaming else load_rows
    train, held_out = load(cfg.data, setup.tokenizer, cfg.train.max_length, cfg.seed)
    longest = cfg.train.max_length if cfg.data.streaming else train.longest
    return with_evaluators(cfg, setup.tokenizer, train, held_out, longest, cfg.data.streaming)


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Tunes a model on conversations or text, evaluates it before and after, and exports it."""
    # A dry run reads rows alone, and waits for none of these
    from gemma_tune.models.adapters.adapter import attach, count
    from gemma_tune.models.load_weights import load_base
    from gemma_tune.steps.served import check_served_adapter
    from gemma_tune.steps.session import session
    from gemma_tune.steps.towers import open_media
    from gemma_tune.train.arguments import sft_arguments
    from gemma_tune.train.preflight import preflight
    from gemma_tune.train.sft import sft_trainer
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

    # The trainer, and the known traps checked with this model and these rows
    with folder.leaving_no_empty_folder():
        arguments = sft_arguments(cfg, folder, setup.device)
        where = partial(find_rows, cfg.data, setup.tokenizer, cfg.train.max_length)
        trainer = sft_trainer(cfg, arguments, model, setup.tokenizer, data.train, where)
        weighs_tokens = trainer.model_accepts_loss_kwargs
        checks = preflight(setup.check_inputs(cfg, model, counts, data.train, data.longest, weighs_tokens))

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
