"""Training of towers and projectors beside the language part, and what is stored of it.

They are a part of the model only while it is trained: for adapters, 4-bit weights, the grid and exports the model is
the language part, and what is trained beside it is kept in a file of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gemma_tune.config.model import TRAIN_FULL, TRAIN_NOTHING, TRAIN_PROJECTOR
from gemma_tune.errors import RunError
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.folders import TOWERS_FILE
from gemma_tune.models.tower_files import published_names
from gemma_tune.models.tower_size import PROJECTORS
from gemma_tune.models.towers import Towers, open_towers, towers_of
from gemma_tune.models.unwrap import language_part

_SUBMODULE = "towers"


def train_towers(model: Any, checkpoint: CheckpointFiles, parts: str) -> Towers:
    """Loads the towers, and makes `model.train_towers` of them trainable, in float32: bfloat16 loses small updates.

    Args:
        model: The model, or a PeftModel around it.
        checkpoint: What it was loaded from.
        parts: `model.train_towers`.

    Raises:
        UserError: They can't be loaded.
    """
    towers = open_towers(model)
    if parts == TRAIN_NOTHING:
        return towers
    names = towers.published or published_names(towers, checkpoint)
    towers.whole.float()
    for name, parameter in towers.whole.named_parameters():
        if parts == TRAIN_FULL or (parts == TRAIN_PROJECTOR and name.startswith(PROJECTORS)):
            parameter.requires_grad_(True)
            towers.names[name] = names[name]
    return towers


def trained_count(model: Any) -> int:
    """How many weights of the towers are trained."""
    towers = towers_of(model)
    return sum(p.numel() for p in towers.parameters() if p.requires_grad) if towers else 0


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The towers' tensors that are or were trained, by their names in the checkpoint's files, float32."""
    towers = towers_of(model)
    stored = towers.stored() if towers and towers.names else {}
    return {towers.names[n]: t.detach() for n, t in stored.items() if n in towers.names} if towers else {}


@contextlib.contextmanager
def in_training(model: Any) -> Iterator[None]:
    """Within it, trained towers are a submodule of the language part: of its optimizer, its checkpoints, and of DDP."""
    language, towers = language_part(model), towers_of(model)
    if towers is None or not towers.names:
        yield
        return
    del vars(language)[_SUBMODULE]
    language.add_module(_SUBMODULE, towers)
    try:
        yield
    finally:
        del language._modules[_SUBMODULE]
        vars(language)[_SUBMODULE] = towers.eval()  # the trainer has put them into training mode


def save_towers(model: Any, folder: Path) -> None:
    """Writes what is trained of the towers beside an adapter, if anything is."""
    if tensors := trained_tensors(model):
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / TOWERS_FILE, metadata={"format": "pt"})


def restore_towers(model: Any, folder: Path) -> None:
    """Reads what `save_towers` wrote into the towers of a model that is trained on.

    Raises:
        RunError: The file isn't there, or holds other tensors.
    """
    tensors = trained_tensors(model)
    if not tensors:
        return
    file = folder / TOWERS_FILE
    stored = load_file(file) if file.is_file() else {}
    if stored.keys() != tensors.keys():
        raise RunError(f"{file}: it doesn't hold the {len(tensors)} tensors of the towers that are trained.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])


def with_towers_rate(optimizer: torch.optim.Optimizer, model: Any, rate: float) -> None:
    """Gives the trained towers groups of their own in an optimizer that hasn't stepped yet, with another rate."""
    towers = towers_of(model)
    ours = {id(p) for p in towers.parameters() if p.requires_grad} if towers else set()
    for group in list(optimizer.param_groups):
        taken = [p for p in group["params"] if id(p) in ours]
        if taken:
            group["params"] = [p for p in group["params"] if id(p) not in ours]
            optimizer.add_param_group({**group, "params": taken, "lr": rate})
