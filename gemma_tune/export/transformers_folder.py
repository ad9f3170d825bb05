"""Writes a Transformers folder with the checkpoint's own names: every export but GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict

from gemma_tune.config import ExportConfig
from gemma_tune.export.file_tensor import FileTensor, FileTensors
from gemma_tune.export.verify import ArtifactDiffers, verify_written
from gemma_tune.media.stored import PROCESSOR_FILES, with_images_kwargs
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.load import family_of, load_config
from gemma_tune.models.source import Source
from gemma_tune.models.towers.trained_towers import trained_tensors
from gemma_tune.models.unwrap import language_part
from gemma_tune.run.manifest import write_json
from gemma_tune.run.read_once import read_json


def whole_checkpoint(
    tensors: FileTensors, checkpoint: CheckpointFiles, towers: FileTensors | None = None
) -> Iterator[tuple[str, torch.Tensor | FileTensor]]:
    """The merged tensors under the checkpoint's names, and its other tensors, unchanged.

    So the export has exactly the checkpoint's tensors. The unchanged ones are the towers for images and audio, fixed
    scales, and the keys and values of layers that share those of another layer.

    Args:
        tensors: Those of the language part, by their names there.
        checkpoint: What the model was loaded from.
        towers: Trained tensors of the towers, by their names in the checkpoint.

    Raises:
        ArtifactDiffers: The checkpoint has no place for a merged tensor.
    """
    embedding, head = checkpoint.family.tied
    towers = towers or {}
    left = {*tensors, *towers}
    for name in _unpacked(checkpoint.files):
        own = checkpoint.family.language_name(name)
        left.discard(own)
        if own in tensors:
            yield name, tensors[own]
        elif name in towers:
            left.discard(name)
            yield name, towers[name]
        elif own == head:  # tied, and stored twice
            yield name, tensors[embedding]
        elif name in checkpoint.files:  # else it is packed and idle, and left out
            yield name, checkpoint.read(name)
    if left:
        raise ArtifactDiffers(f"{checkpoint.folder} has no place for {len(left)} weights, for example {min(left)}.")


def _unpacked(names: Collection[str]) -> Iterator[str]:
    """The tensors that files hold, one whose codes and scales are stored apart (compressed-tensors) by its own name."""
    for name in names:
        stem, _, part = name.rpartition("_")
        if f"{stem}_packed" not in names:
            yield name
        elif part == "packed":
            yield stem


def write_folder(
    tensors: FileTensors,
    dtype: torch.dtype,
    quantization: Mapping[str, Any] | None,
    model: Any,
    tokenizer: Any,
    folder: Path,
    options: ExportConfig,
    source: Source,
    parts: Mapping[str, FileTensors] | None = None,
    untied: bool = False,
) -> list[Path]:
    """Writes a Transformers folder with the tensors under the checkpoint's own names, its towers to the bit.

    Args:
        tensors: Those of the language part, by their names there.
        dtype: What config.json says that the model computes in.
        quantization: `quantization_config` of config.json, or None.
        model: The trained model, or a PeftModel around it: its generation config.
        tokenizer: The tokenizer with our template.
        folder: Where to write.
        options: `max_shard_size`.
        source: What the model was loaded from.
        parts: For a tensor that is stored as several, by its name: the parts, by the suffix of their names; one that
            begins with a point stands in place of the tensor's last name.
        untied: Whether the head is written beside the embedding that it is tied to.

    Returns:
        The files written.
    """
    base = language_part(model)
    config, checkpoint = load_config(source), CheckpointFiles.of(source, family_of(source))
    config.get_text_config().vocab_size = base.config.get_text_config().vocab_size  # with rows of added tokens
    placed = dict(tensors)
    if checkpoint.files:
        # In float32 they were trained; they get the type that they have in the files, which is the model's own
        towers = {n: t.to(dtype if t.is_floating_point() else t.dtype) for n, t in trained_tensors(model).items()}
        placed = dict(whole_checkpoint(tensors, checkpoint, towers))
    elif checkpoint.family.has_towers:  # their weights can't be read, so the language part goes alone
        config = config.get_text_config()
        config.architectures = [checkpoint.family.language_class]
    if untied:
        embedding, head = checkpoint.family.tied
        if not any(checkpoint.family.language_name(name) == head for name in placed):
            placed[head] = tensors[embedding]
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    stored: dict[str, torch.Tensor | FileTensor] = {}
    for name, tensor in placed.items():
        several = (parts or {}).get(checkpoint.family.language_name(name))
        if several:
            tensor_of = name.rpartition(".")[0]
            stored |= {(tensor_of if end.startswith(".") else name) + end: part for end, part in several.items()}
        else:
            stored[name] = tensor
    config.dtype = dtype
    if quantization is not None:
        config.quantization_config = dict(quantization)
    elif hasattr(config, "quantization_config"):  # of packed weights, which are written as numbers
        del config.quantization_config
    write_weights(stored, config, tokenizer, folder, options)
    base.generation_config.save_pretrained(folder)
    for name in PROCESSOR_FILES:
        if found := checkpoint.beside(name):
            _keep(found, folder / name, dict(source.images_kwargs))
    return sorted(p for p in folder.iterdir() if p.is_file())


def _keep(found: Path, file: Path, images_kwargs: Mapping[str, Any]) -> None:
    """Writes a checkpoint's file of how images and sounds are prepared, with what the run has set."""
    content = read_json(found) if images_kwargs else None
    changed = with_images_kwargs(content, images_kwargs) if isinstance(content, dict) else content
    if changed == content:
        shutil.copyfile(found, file)
    else:
        write_json(file, changed)


def write_weights(tensors: FileTensors, config: Any, tokenizer: Any, folder: Path, options: ExportConfig) -> None:
    """Writes config, weights and tokenizer, and reads the weights back.

    The library writes files of zeros, because it needs all tensors at once; then the rows take their places.

    Args:
        tensors: Every weight by its name in the files.
        config: The config.json.
        tokenizer: The tokenizer with our template.
        folder: Where to write.
        options: `max_shard_size`.

    Raises:
        ArtifactDiffers: What was written isn't what was to be written.
    """
    config.save_pretrained(folder)
    if sizes := published_sizes(config.get_text_config()):
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        described.get("text_config", described).update(sizes)
        write_json(folder / "config.json", described)
    found = {name: FileTensor.of(tensor) for name, tensor in tensors.items()}
    empty = _empty(found)
    save_torch_state_dict(empty, folder, max_shard_size=options.max_shard_size, metadata={"format": "pt"})
    _fill(folder, found)
    verify_written(folder, found)
    tokenizer.save_pretrained(folder)


def published_sizes(config: Any) -> dict[str, int]:
    """Sizes of Gemma 4's layers with full attention, under the names of the published config.json.

    Transformers reads those, and writes `per_layer_config` in their place; an engine that reads the published names
    alone would have its defaults.
    """
    kinds = getattr(config, "layer_types", None) or []
    if not config.model_type.startswith("gemma4") or "full_attention" not in kinds:
        return {}
    one = config.per_layer_config[kinds.index("full_attention")]
    return {"global_head_dim": one.head_dim, "num_global_key_value_heads": one.num_key_value_heads}


def _empty(tensors: Mapping[str, FileTensor]) -> dict[str, torch.Tensor]:
    """Zeros of these shapes and types that take no memory: pages that are only read, as a writer does, stay empty."""
    starts = [0, *accumulate(-(-tensor.size // 64) * 64 for tensor in tensors.values())]
    zeros = np.zeros(starts[-1], np.uint8)
    return {
        name: torch.frombuffer(zeros, dtype=x.dtype, count=prod(x.shape), offset=start).view(x.shape)
        for (name, x), start in zip(tensors.items(), starts, strict=False)
    }


def _fill(folder: Path, tensors: Mapping[str, FileTensor]) -> None:
    """Writes the tensors into the files of a folder, in which they have their places."""
    for file in folder.glob("*.safetensors"):
        with file.open("r+b") as stored:
            start = 8 + int.from_bytes(stored.read(8), "little")
            header = json.loads(stored.read(start - 8))
            for name in (name for name in tensors if name in header):  # in their order: neighbours share work
                stored.seek(start + header[name]["data_offsets"][0])
                for block in tensors[name].blocks():
                    block.contiguous().flatten().view(torch.uint8).numpy().tofile(stored)
