"""Loads the towers of a checkpoint by its own class in Transformers, and finds their names in its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import logging

from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError, first_line
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.estimate.tower_size import without_language
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.folders import TOWERS_FILE
from gemma_tune.models.hub import only_local
from gemma_tune.models.source import Source
from gemma_tune.models.towers.image_packages import no_timm
from gemma_tune.models.towers.stored_towers import read_towers
from gemma_tune.models.towers.tower_adapter import place_stored
from gemma_tune.models.towers.tower_names import trains_towers
from gemma_tune.models.towers.towers import Towers


def load_towers(model: ModelConfig, source: Source, config: Any, language: Any) -> Towers:
    """The towers of a checkpoint for its loaded language part.

    Args:
        model: What is asked for.
        source: Where it is.
        config: Of the whole checkpoint, as `load_config` gives it.
        language: The loaded language part.

    Raises:
        UserError: They can't be loaded, or their weights are missing in the files or have another shape.
    """
    if config.model_type == "gemma3n" and (why := no_timm()):
        raise UserError(f"model.model_name_or_path={source.base}: its image tower needs timm, and {why}")
    family = FAMILIES[config.model_type]
    cls: Any = getattr(transformers, str(family.whole_class))
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # that weights of the language model are left out is meant
    logging.disable_progress_bar()
    try:
        loaded, info = cls.from_pretrained(
            source.base,
            config=without_language(config),
            dtype=getattr(torch, str(model.dtype)),
            revision=source.revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, where they are the towers'
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=only_local(source.base),
        )
    except (OSError, ValueError, RuntimeError, ImportError, TypeError, AttributeError, LookupError) as error:
        raise UserError(
            f"model.model_name_or_path={source.base}: its towers can't be loaded ({first_line(error)})."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    lost = [n for n in (*info["missing_keys"], *(k for k, *_ in info["mismatched_keys"])) if family.is_tower(n)]
    if lost:
        raise UserError(
            f"model.model_name_or_path={source.base}: {len(lost)} weights of its towers are missing in the files or "
            f"have another shape (for example {min(lost)}); they would be random. Fetch the checkpoint again."
        )
    towers = Towers(loaded, config, language.model)
    if source.adapter is not None and trains_towers(source.adapter):
        _fill(towers, source.adapter, CheckpointFiles.of(source, family))
    return towers


def _fill(towers: Towers, adapter: Path, checkpoint: CheckpointFiles) -> None:
    """Puts what was trained with an adapter into the towers of its base, and its adapters on them."""
    stored = read_towers(adapter, towers.whole)
    towers.published = published_names(towers, checkpoint)
    towers.whole.float()  # as they were trained
    if (adapter / TOWERS_FILE).is_file():
        _fill_whole(towers, adapter / TOWERS_FILE, checkpoint)
    if stored is None:
        return
    there = towers.stored()
    with torch.no_grad():
        for name, tensor in stored.saved.items():
            there[name].copy_(tensor)
            towers.names[name] = towers.published[name]
    if stored.weights:
        place_stored(towers.whole, stored)


def _fill_whole(towers: Towers, file: Path, checkpoint: CheckpointFiles) -> None:
    assert towers.published is not None
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: it can't be read ({first_line(error)}).") from error
    places = {own: name for name, own in towers.published.items()}
    there = towers.stored()
    wrong = [n for n, t in stored.items() if n not in places or there[places[n]].shape != t.shape]
    if wrong:
        raise UserError(f"{file}: {wrong[0]} has no place in the towers of {checkpoint.folder}: it is another base's.")
    with torch.no_grad():
        for name, tensor in stored.items():
            there[places[name]].copy_(tensor)
    towers.names = {places[name]: name for name in stored}


def published_names(towers: Towers, checkpoint: CheckpointFiles) -> dict[str, str]:
    """The name in the files of each tensor of the towers, by its name in memory, where Transformers renames some.

    It is the one with the same numbers, and of several such (norms of ones) that whose name ends alike.

    Args:
        towers: As they were loaded, not trained yet.
        checkpoint: Where from.

    Raises:
        RuntimeError: A tensor is in no file.
    """
    left = {n: n.split(".")[::-1] for n in checkpoint.files if checkpoint.family.is_tower(n)}
    found = {}
    for name, tensor in towers.stored().items():
        parts = name.split(".")[::-1]
        for own in sorted(left, key=lambda n: _alike(parts, left[n]), reverse=True):
            stored = checkpoint.read(own)
            if stored.shape == tensor.shape and torch.equal(stored.to(tensor.dtype), tensor.cpu()):
                found[name] = own
                del left[own]
                break
        else:
            raise RuntimeError(f"{checkpoint.folder}: no file holds the tensor {name} of the towers")
    return found


def _alike(parts: list[str], others: list[str]) -> int:
    """How many parts at the end of two names are the same."""
    return next(
        (i for i, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b), min(len(parts), len(others))
    )
