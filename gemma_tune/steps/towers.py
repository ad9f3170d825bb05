"""The step of rows with images, sounds and videos: the towers beside the loaded model."""

from __future__ import annotations

import json
from typing import Any

from gemma_tune.config import Config
from gemma_tune.config.methods import Reads
from gemma_tune.config.model import TRAIN_NOTHING
from gemma_tune.errors import UserError
from gemma_tune.media.stored import only_in_calls
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.estimate.tower_size import unadapted_tower
from gemma_tune.models.load import family_of
from gemma_tune.models.sharding import sharding_of, shards
from gemma_tune.models.towers.image_attention import STORED
from gemma_tune.models.towers.image_cache import ImageCache
from gemma_tune.models.towers.tower_adapter import placed_layers
from gemma_tune.models.towers.trained_towers import train_towers, trained_count
from gemma_tune.steps.data import Data
from gemma_tune.steps.setup import Setup
from gemma_tune.train.batches import has_media


def open_media(cfg: Config, setup: Setup, data: Data, model: Any, media: bool | None = None) -> list[str]:
    """Loads the towers where rows have media, and makes trainable what `model.train_towers` names.

    Args:
        cfg: The configuration.
        setup: What `set_up` gave.
        data: The rows.
        model: The model, with its adapter.
        media: Whether rows have media; None: their data set says so.

    Returns:
        What is trained beside the language model, a line each.

    Raises:
        UserError: The towers can't be loaded, not on several processes that share the weights, or not be trained by
            this recipe.
    """
    parts = cfg.model.train_towers
    if not (has_media(data.train.dataset) if media is None else media):
        said = f"model.train_towers={parts}: no row has an image, so no tower is trained"
        return [] if parts == TRAIN_NOTHING else [said]
    if shards(cfg):
        raise UserError(
            "data.train_file: rows with images, and weights that are spread over processes (parallel): the towers "
            "aren't spread; leave it out."
        )
    if cfg.traits.rewarded and parts != TRAIN_NOTHING:
        raise UserError(
            f"model.train_towers={parts}: with rewards the towers stay as they are, for the reference has the same "
            f"ones; set model.train_towers={TRAIN_NOTHING}."
        )
    checkpoint = CheckpointFiles.of(setup.source, family_of(setup.source))
    towers = train_towers(model, checkpoint, parts, setup.adapter)
    total, trained = sum(t.numel() for t in towers.stored().values()), trained_count(model)
    how = f"{trained:,} of them trained" if trained else "frozen"
    if layers := len(placed_layers(towers.whole)):
        how = f"adapters on {layers} layers, " + (f"{trained:,} weights trained" if trained else "frozen")
        if unadapted_tower(towers.whole):
            how += ", none of them in the image tower, which has no linear layer (model.train_towers=full trains it)"
    said = f"towers: {total:,} weights, {how}"
    if parts == TRAIN_NOTHING and _keeps_features(cfg, data):
        towers.cache = ImageCache(processes=sharding_of(cfg).per_machine)
        said += "; what they make of an image is computed once"
    return [said, *_of_images(dict(setup.source.images_kwargs)), *_of_attention(setup.source.image_attention)]


def _keeps_features(cfg: Config, data: Data) -> bool:
    """Whether features of images are kept: as `model.cache_image_features` says, or where rows come several times."""
    if cfg.traits.reads is not Reads.EXAMPLES or cfg.traits.quantizes:  # a teacher would have towers of its own
        return False
    if cfg.model.cache_image_features is not None:
        return cfg.model.cache_image_features
    train, rows = cfg.train, data.counts()["training"]["rows"]
    if data.streamed or train.max_steps < 0:
        return not data.streamed and train.num_train_epochs > 1
    return train.max_steps * train.gradient_accumulation_steps * (train.per_device_train_batch_size or 1) > rows


def _of_images(images_kwargs: dict[str, Any]) -> list[str]:
    """Who knows of `model.images_kwargs` when the tuned model is used, and who has to be told."""
    if not images_kwargs:
        return []
    ours = "recipes with this run as their model use it"
    if in_calls := only_in_calls(images_kwargs):
        return [
            f"images: model.images_kwargs={json.dumps(in_calls)} can't be stored in an export: {ours}; vLLM is told by "
            "--mm-processor-kwargs, Transformers in each call of the processor (images_kwargs=), llama.cpp cuts no "
            "image into crops"
        ]
    most = images_kwargs["max_soft_tokens"]
    return [
        f"images: {most} tokens at most, as processor_config.json of exports says: {ours}; vLLM with the adapter is "
        f"told by --mm-processor-kwargs, llama.cpp by --image-max-tokens {most}"
    ]


def _of_attention(attention: str | None) -> list[str]:
    """Who knows of `model.image_attention`, and who has to be told."""
    if attention is None:
        return []
    return [
        f"images: model.image_attention={attention}, as config.json of exports says: recipes with this run as their "
        "model use it; who puts the adapter onto its base must set text_config.use_bidirectional_attention to "
        f"{json.dumps(STORED[attention])}; llama.cpp knows no such setting, and its check says what it does"
    ]
