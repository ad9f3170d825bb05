"""Training of towers and projectors beside the language part, and what is stored of it.

They are a part of the model only while it is trained: for adapters, 4-bit weights, the grid and exports the model is
the language part. What is trained of them whole is kept in a file of its own; adapters on them are in the adapter's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gemma_tune.config import AdapterConfig
from gemma_tune.config.model import TRAIN_FULL, TRAIN_LORA, TRAIN_NOTHING, TRAIN_PROJECTOR
from gemma_tune.errors import RunError, UserError
from gemma_tune.models.adapters.merging import merged_weight
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.estimate.tower_size import PROJECTORS, saved_parameters
from gemma_tune.models.folders import TOWERS_FILE
from gemma_tune.models.towers.tower_adapter import add_to_file, place_new, placed_layers
from gemma_tune.models.towers.tower_files import published_names
from gemma_tune.models.towers.towers import Towers, open_towers, towers_of
from gemma_tune.models.unwrap import language_part

_SUBMODULE = "towers"
# Of the rate of adapters, what is trained whole beside them: full training takes a tenth of LoRA's rate ("LoRA Without
# Regret", 2025), and LLaVA 1.5 has 2e-5 for its projector beside 2e-4 for adapters
_WHOLE_RATE = 0.1


def train_towers(model: Any, checkpoint: CheckpointFiles, parts: str, adapter: AdapterConfig) -> Towers:
    """Loads the towers, and makes `model.train_towers` of them trainable, in float32: bfloat16 loses small updates.

    Args:
        model: The model, or a PeftModel around it.
        checkpoint: What it was loaded from.
        parts: `model.train_towers`.
        adapter: Rank, alpha and kind of the adapters of `model.train_towers=lora`.

    Raises:
        UserError: They can't be loaded, or have adapters and shall be trained without.
    """
    towers = open_towers(model)
    if parts == TRAIN_NOTHING:
        return towers
    placed = placed_layers(towers.whole)
    if placed and parts != TRAIN_LORA:
        raise UserError(
            f"model.train_towers={parts}: the adapter that is trained further has adapters on {len(placed)} layers of "
            f"the towers; set model.train_towers={TRAIN_LORA}, or merge it (recipe=export quant=none export=merged) "
            "and name the merged folder."
        )
    towers.published = towers.published or published_names(towers, checkpoint)
    towers.whole.float()
    whole = _trained_whole(towers, parts)
    if parts == TRAIN_LORA and not placed:
        place_new(towers.whole, adapter)
    for name, parameter in towers.whole.named_parameters():
        parameter.requires_grad_(name in whole or (parts == TRAIN_LORA and ".lora_" in name))
    towers.names |= {name: towers.published[name] for name in whole}
    return towers


def _trained_whole(towers: Towers, parts: str) -> set[str]:
    """Names in memory of what is trained other than by adapters."""
    if parts == TRAIN_LORA:
        return {*saved_parameters(towers.whole)}
    named = [name for name, _ in towers.whole.named_parameters()]
    return {name for name in named if parts == TRAIN_FULL or (parts == TRAIN_PROJECTOR and name.startswith(PROJECTORS))}


def trained_count(model: Any) -> int:
    """How many weights of the towers are trained."""
    towers = towers_of(model)
    return sum(p.numel() for p in towers.parameters() if p.requires_grad) if towers else 0


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The towers' tensors that are or were trained, by their names in the checkpoint's files, float32.

    Those of layers with adapters are merged.
    """
    towers = towers_of(model)
    if towers is None:
        return {}
    found = _whole_tensors(towers)
    for name, layer in placed_layers(towers.whole).items():
        assert towers.published is not None
        found[towers.published[f"{name}.weight"]] = merged_weight(layer)
    return found


def _whole_tensors(towers: Towers) -> dict[str, torch.Tensor]:
    stored = towers.stored() if towers.names else {}
    return {towers.names[n]: t.detach() for n, t in stored.items() if n in towers.names}


@contextlib.contextmanager
def in_training(model: Any) -> Iterator[None]:
    """Within it, trained towers are a submodule of the language part: of its optimizer, its checkpoints, and of DDP.

    PEFT finds their adapters there, too: checkpoints have them, and go on with them.
    """
    language, towers = language_part(model), towers_of(model)
    if towers is None or not trained_count(model):
        yield
        return
    del vars(language)[_SUBMODULE]
    language.add_module(_SUBMODULE, towers)
    try:
        yield
    finally:
        del language._modules[_SUBMODULE]
        vars(language)[_SUBMODULE] = towers.eval()  # the trainer has put them into training mode


def save_with_adapter(model: Any, folder: Path) -> None:
    """Writes what is or was trained of the towers into the folder of a saved adapter, if anything is.

    Adapters on them, and a projector that is trained whole beside these, are in PEFT's file, where PEFT loads them; a
    tower that is trained whole is in a file of its own.

    Args:
        model: The model with its adapter.
        folder: PEFT's folder, with the names of the checkpoint's own class.
    """
    towers = towers_of(model)
    if towers is None:
        return
    if not placed_layers(towers.whole):
        _save(_whole_tensors(towers), folder)
        return
    stored = towers.stored()
    in_peft = towers.names.keys() == saved_parameters(towers.whole).keys()
    add_to_file(towers.whole, {name: stored[name] for name in towers.names} if in_peft else {}, folder)
    if not in_peft:
        _save(_whole_tensors(towers), folder)


def save_towers(model: Any, folder: Path) -> None:
    """Writes what a checkpoint's adapter doesn't hold of the towers, if anything is trained or was.

    Adapters that are trained are a part of the model. Those that are not are merged here.
    """
    towers = towers_of(model)
    if towers is not None:
        _save(_whole_tensors(towers) if trained_count(model) else trained_tensors(model), folder)


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    if tensors:
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / TOWERS_FILE, metadata={"format": "pt"})


def restore_towers(model: Any, folder: Path) -> None:
    """Reads what `save_towers` wrote into the towers of a model that is trained on.

    Raises:
        RunError: The file isn't there, or holds other tensors.
    """
    towers = towers_of(model)
    tensors = _whole_tensors(towers) if towers and trained_count(model) else {}
    if not tensors:
        return
    file = folder / TOWERS_FILE
    stored = load_file(file) if file.is_file() else {}
    if stored.keys() != tensors.keys():
        raise RunError(f"{file}: it doesn't hold the {len(tensors)} tensors of the towers that are trained.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])


def with_towers_rate(optimizer: torch.optim.Optimizer, model: Any, rate: float, language: float) -> None:
    """Gives the trained towers groups of their own in an optimizer that hasn't stepped yet, with another rate.

    Beside adapters, what is trained whole gets a tenth of it, and B of LoRA+ its multiple.

    Args:
        optimizer: It holds all that is trained.
        model: The model with its towers.
        rate: Theirs.
        language: That of the language model's adapters, A's with LoRA+.
    """
    towers = towers_of(model)
    named = [(name, p) for name, p in towers.named_parameters() if p.requires_grad] if towers else []
    adapters = {id(p) for name, p in named if ".lora_" in name}
    whole = {id(p) for name, p in named} - adapters
    for group in list(optimizer.param_groups):
        factor = group["lr"] / language
        for ours, its in ((adapters, rate * factor), (whole, rate * (_WHOLE_RATE if adapters else 1.0))):
            taken = [p for p in group["params"] if id(p) in ours]
            if taken:
                group["params"] = [p for p in group["params"] if id(p) not in ours]
                optimizer.add_param_group({**group, "params": taken, "lr": its})
