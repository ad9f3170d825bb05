"""Builds a trainer of ours from the configuration: its options, its callbacks, and what TRL refuses of it."""

from __future__ import annotations

from typing import Any, TypeVar

from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.models.gathered import blank_copy
from gemma_tune.models.kernels.host_table import keep_table_on_host
from gemma_tune.models.sharding import shards
from gemma_tune.train.base import GemmaTrainer
from gemma_tune.train.best import best_callbacks
from gemma_tune.train.callbacks import ProgressBar
from gemma_tune.train.nonfinite import NonFiniteGuard
from gemma_tune.train.refused import refused_by_trainer
from gemma_tune.train.watching import watch

T = TypeVar("T", bound=GemmaTrainer)


def build_trainer(
    kind: type[T],
    cfg: Config,
    args: Any,
    model: Any,
    tokenizer: Any,
    dataset: Any,
    guard: NonFiniteGuard,
    **more: Any,
) -> T:
    """Builds a trainer with our progress bar and the stop at a NaN or infinite loss.

    Args:
        kind: The trainer's class.
        cfg: The configuration.
        args: The trainer's arguments.
        model: What is trained.
        tokenizer: Its tokenizer.
        dataset: The rows as the trainer takes them.
        guard: Remembers the batches of each step, to name its rows.
        more: Further arguments of the class.

    Raises:
        UserError: TRL refuses an option, an optimizer's package is missing, or there is no whole batch.
    """
    # Before the trainer is made: TRL's forward passes would be those of the model that it has been given
    blank = blank_copy(model) if shards(cfg) else None
    keep_table_on_host(model, cfg.model.per_layer_table_on_host)
    try:
        with refused_by_trainer():
            trainer = kind(
                model=model,
                args=args,
                processing_class=tokenizer,
                train_dataset=dataset,
                eval_dataset={} if cfg.train.eval_steps else None,  # `measure` has rows of its own
                callbacks=best_callbacks(cfg.train),
                loraplus_lr_ratio=cfg.adapter.loraplus_lr_ratio,
                checkpoints_kept=cfg.train.save_total_limit,
                towers_learning_rate=cfg.train.towers_learning_rate,
                tiled_head=cfg.train.tiled_head,
                compact_batches=cfg.train.compact_batches,
                guard=guard,
                **more,
            )
            trainer.add_callback(ProgressBar(trainer.counted_tokens))
            watch(trainer, cfg)
            trainer.get_optimizer_cls_and_kwargs(args, model)  # imports what the optimizer needs
    except OSError as error:
        raise UserError(f"output_dir: {error.filename} can't be made ({error.strerror}).") from error
    if shards(cfg):
        trainer.shard(blank)
    at_once = args.train_batch_size * args.world_size
    drops = args.dataloader_drop_last and not cfg.data.streaming and not cfg.traits.rewarded  # whose rows are prompts
    if drops and len(trainer.train_dataset) < at_once:
        raise UserError(f"train.extra.dataloader_drop_last=true drops all {len(dataset)} rows: they fill no batch.")
    return trainer
