"""Checks of `train.train_sampling_strategy`: where an order of the rows has no effect."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_tune.config import Config

_BY_DOCUMENT = "by_document"
_WHOLE_ROWS = ("label_smoothing_factor", "neftune_noise_alpha")  # options with which batches aren't compact


def sampling_problems(cfg: Config) -> Iterator[str]:
    """Why the order that was asked for has no effect."""
    t = cfg.train
    named = f"train.train_sampling_strategy={t.train_sampling_strategy}"
    if t.train_sampling_strategy != "random" and cfg.data.streaming:
        yield f"{named} has no effect on a stream; leave it out."
    if t.train_sampling_strategy.startswith("group_by_") and t.packing:
        yield f"{named} has no effect on packed rows; leave one of the two out."
    if t.train_sampling_strategy == "group_by_beginning" and (why := shares_nothing(cfg)):
        yield f"{named} would save nothing: {why}"


def shares_nothing(cfg: Config) -> str | None:
    """Why rows of a batch share nothing of what they begin with, and what to do; None where they may share it."""
    t, asked = cfg.train, cfg.model.attn_implementation
    if cfg.traits.stages:
        return (
            f"the second training of recipe={cfg.recipe} computes whole rows; leave it out, or run its trainings one "
            "by one, with it in the first (recipe=lora_sft, then recipe=qat)."
        )
    if cfg.traits.quantizes:
        return f"recipe={cfg.recipe} computes whole rows; leave it out."
    if t.per_device_train_batch_size == 1:
        return "train.per_device_train_batch_size=1 leaves no row to share a beginning with; raise it."
    if not t.compact_batches:
        return "train.compact_batches=false computes whole rows; leave one of the two out."
    if asked not in (None, _BY_DOCUMENT):
        return f"model.attn_implementation={asked} computes whole rows; leave one of the two out."
    if cfg.adapter.lora_dropout:
        return "with adapter.lora_dropout rows share no beginning, as they would share its noise; leave one out."
    for name in _WHOLE_ROWS:
        if t.extra.get(name):
            return f"with train.extra.{name} whole rows are computed; leave one of the two out."
    if t.loss is not None:
        return "with train.loss whole rows are computed; leave one of the two out."
    return None
