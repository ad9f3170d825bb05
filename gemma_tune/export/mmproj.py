"""The mmproj file beside a GGUF file: the towers for images and sound, as llama.cpp and Ollama load them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from safetensors import safe_open

from gemma_tune.errors import UserError
from gemma_tune.export.file_tensor import FileTensor, FileTensors
from gemma_tune.export.gguf_writer import gguf_writer, write_head
from gemma_tune.export.int4_check import FAIL, OK, CheckLine
from gemma_tune.export.mmproj_metadata import add_mmproj_metadata, has_no_mmproj, tower_problems
from gemma_tune.export.mmproj_tensors import F16, F32, TowerTensor, tower_tensors
from gemma_tune.export.read_gguf import open_gguf, stored_as
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.run.paths import MMPROJ

_FILE_TYPES = {F16: LlamaFileType.MOSTLY_F16, F32: LlamaFileType.ALL_F32}
# Of an image in Gemma 4, as published
IMAGE_TOKENS = 280
_SOUND = ("audio_tower.", "embed_audio.")


def file_name(title: str, kind: GGMLQuantizationType = F16) -> str:
    """The file's name; Ollama and llama.cpp's downloads know an mmproj file by how its name begins."""
    return f"{MMPROJ}{title}-{kind.name.lower()}.gguf"


def towers_of(checkpoint: CheckpointFiles) -> dict[str, FileTensor]:
    """The towers' tensors in a checkpoint's files, by their names there; each is read when it is written."""
    names = [name for name in checkpoint.files if checkpoint.family.is_tower(name)]
    return {name: _in_file(checkpoint, name) for name in names}


def _in_file(checkpoint: CheckpointFiles, name: str) -> FileTensor:
    with safe_open(checkpoint.files[name], framework="pt") as stored:
        shape = tuple(stored.get_slice(name).get_shape())
    return FileTensor(shape, torch.float32, lambda: [checkpoint.read(name)])


def check_mmproj(config: Any, towers: FileTensors) -> str | None:
    """Whether an mmproj file can be written, before anything is trained.

    Args:
        config: The whole model's.
        towers: Its towers' tensors; none: the checkpoint has no files of its own.

    Returns:
        Why there is none; None where there is one.

    Raises:
        UserError: llama.cpp has no place for a tensor.
    """
    said = has_no_mmproj(config.model_type)
    if said is None and not towers:
        said = "no mmproj file: the checkpoint's files hold no towers, so the GGUF file reads texts alone."
    if said is None and (problems := tower_problems(config)):
        said = f"no mmproj file: llama.cpp can't compute this model's towers ({'; '.join(problems)})."
    if said is None:
        tower_tensors(config.model_type, _shapes(towers))
    return said


def export(
    towers: FileTensors,
    config: Any,
    file: Path,
    *,
    name: str,
    kind: GGMLQuantizationType = F16,
    most_tokens: int = IMAGE_TOKENS,
) -> list[TowerTensor]:
    """Writes an mmproj file, one tensor at a time.

    Args:
        towers: Every tensor of the towers and projectors, by its name in the checkpoint: as the checkpoint's files hold
            them (`towers_of`), or trained ones under the same names.
        config: The whole model's configuration.
        file: Where to write; it has this name once it is whole.
        name: The model's name, for people.
        kind: F16 as llama.cpp's own converter writes, or F32.
        most_tokens: The most tokens of an image in training (`max_soft_tokens` of Gemma 4's image processor).

    Returns:
        What the file holds, in its order.

    Raises:
        UserError: llama.cpp can't compute the towers, has no place for a tensor, or a number is too large for the type.
    """
    if problems := tower_problems(config):
        raise UserError(f"llama.cpp can't compute this model's towers: {'; '.join(problems)}.")
    tensors = tower_tensors(config.model_type, _shapes(towers), kind)
    sounds = [tensor for tensor in tensors if _is_sound(tensor.own)]
    with gguf_writer(file, "clip") as writer:
        writer.add_name(name)
        writer.add_file_type(_FILE_TYPES[kind])
        sees, hears = len(sounds) < len(tensors), bool(sounds)
        add_mmproj_metadata(writer, config, sees, hears, most_tokens)
        for tensor in tensors:
            data = _rounded(tensor, _whole(towers[tensor.own]))
            writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes)
        write_head(writer)
        for tensor in tensors:
            writer.write_tensor_data(_rounded(tensor, _whole(towers[tensor.own])))
    return tensors


def stored_mmproj_line(
    what: str, file: Path, towers: FileTensors, config: Any, kind: GGMLQuantizationType
) -> CheckLine:
    """Reads an mmproj file back and compares each tensor with the checkpoint's, to the bit.

    Args:
        what: The file, for people.
        file: The file.
        towers: What it was written from.
        config: The whole model's configuration.
        kind: The type of its matrices.
    """
    planned = {tensor.name: tensor for tensor in tower_tensors(config.model_type, _shapes(towers), kind)}
    differing = [name for name, same in _compared(file, planned, towers) if not same]
    differing += sorted(planned.keys() - {tensor.name for tensor in open_gguf(file).tensors})
    good = len(planned) - len(differing)
    return CheckLine(
        f"{what}: towers",
        f"the checkpoint's, rounded to {kind.name}, to the bit",
        f"{good} of {len(planned)} tensors ({good / len(planned):.0%})",
        FAIL if differing else OK,
        f"{differing[0]}: it is another one, or not there." if differing else "",
    )


def _compared(file: Path, planned: Mapping[str, TowerTensor], towers: FileTensors) -> Iterator[tuple[str, bool]]:
    for stored in open_gguf(file).tensors:
        tensor = planned.get(stored.name)
        if tensor is None:
            yield stored.name, False
            continue
        found = stored_as(stored.tensor_type, stored.data).values
        wanted = torch.from_numpy(_rounded(tensor, _whole(towers[tensor.own])).astype(np.float32))
        yield stored.name, stored.tensor_type == tensor.kind and torch.equal(found, wanted)


def _rounded(tensor: TowerTensor, weight: torch.Tensor) -> np.ndarray[Any, Any]:
    """What the file holds of a tensor; the bounds of a clamped layer may be infinite."""
    numbers = tensor.stored(weight.detach().cpu()).float().contiguous()
    found = numbers.half() if tensor.kind == F16 else numbers
    if torch.isnan(numbers).any() or not torch.equal(torch.isinf(found), torch.isinf(numbers)):
        raise UserError(
            f"{tensor.own}: {tensor.kind.name} can't hold its numbers (the largest is {float(numbers.abs().max()):g}), "
            "so there is no mmproj file; leave it out with export.mmproj=false."
        )
    stored: np.ndarray[Any, Any] = found.numpy()
    return stored


def _whole(tensor: torch.Tensor | FileTensor) -> torch.Tensor:
    if isinstance(tensor, torch.Tensor):
        return tensor
    blocks = list(tensor.blocks())
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _shapes(towers: FileTensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in towers.items()}


def _is_sound(own: str) -> bool:
    return own.removeprefix("model.").startswith(_SOUND)
