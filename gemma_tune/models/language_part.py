"""Loads the language part of a checkpoint: every weight of the files finds its place, and every number is finite."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging

from gemma_tune.collector import look_as_usual
from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models import four_bit
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.family import BY_DOCUMENT, FAMILIES, Family
from gemma_tune.models.finite import not_finite, say_not_finite
from gemma_tune.models.hardware import pick_device
from gemma_tune.models.hub import only_local
from gemma_tune.models.kernels.host_table import loader, loads_to_host, placed
from gemma_tune.models.not_loadable import not_loadable
from gemma_tune.models.sharded import loads_no_numbers, loads_to_shard
from gemma_tune.models.source import Source
from gemma_tune.run.manifest import file_version

# Checkpoints whose files were looked at in this process, by the versions of the files
_COMPLETE: set[tuple[Source, tuple[object, ...]]] = set()

# Of weights, and of generation_config.json and the index beside them
_UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError, TypeError, AttributeError, LookupError)


def load_language_part(
    model: ModelConfig, source: Source, config: Any, kind: str, new: Collection[str] = (), packed: bool = False
) -> Any:
    """The language part of a checkpoint in a class of Transformers.

    Args:
        model: What is asked for.
        source: Where it is.
        config: Of the whole checkpoint, as `load_config` gives it; its text part goes to the class.
        kind: Name of the class.
        new: Weights of the class that are no language model's: the head of a classifier, random where the files
            lack it. A model with such a head has no `lm_head`.
        packed: Whether weights that are stored in 4 bit are accepted (compressed-tensors: `export=w4a16`).

    Raises:
        UserError: Not loadable, weights missing in the files or too many, stored in a quantized form, or not finite.
    """
    look_as_usual()
    family = FAMILIES[config.model_type]
    text = config.get_text_config()
    if stored := four_bit.stored_quantized(config):
        four_bit.check_stored(model, source, config, stored, packed)
        text.quantization_config = stored
    device, attention = "cpu" if loads_to_shard() else str(pick_device(model)), _attention(model, family)
    four_bit_config = four_bit.quantization_config(model, config)
    loaded = _built(model, source, config, kind, device, attention, new, quantization_config=four_bit_config)
    four_bit.keep_layout(loaded)
    if not loads_no_numbers():
        _check_finite(source, config, loaded)
    return loaded


def check_files(model: ModelConfig, source: Source, config: Any, packed: bool = False) -> None:
    """Refuses, before a weight is loaded, a local checkpoint whose files are cut off or lack weights.

    The model is built on the meta device from the headers of the files: no number of them is read.

    Args:
        model: What is asked for.
        source: Where it is; what the Hub has is complete once it is downloaded.
        config: As `load_config` gives it.
        packed: As in `load_language_part`.

    Raises:
        UserError: As `load_language_part`, but for numbers that aren't finite.
    """
    if source.folder is None:
        return
    family = FAMILIES[config.model_type]
    stored = CheckpointFiles.of(source, family).files
    if quantized := four_bit.stored_quantized(config):
        four_bit.check_stored(model, source, config, quantized, packed)
        return
    versions = tuple(file_version(file) for file in (source.folder / "config.json", *sorted({*stored.values()})))
    if not stored or (source, versions) in _COMPLETE:  # files of another form have no headers
        return
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        # A classifier has its head, too
        _built(model, source, config, family.language_class, "meta", _attention(model, family), ["score.weight"])
    except UserError as error:
        if "unable to mmap" not in str(error.__cause__):
            raise  # else a file larger than the memory, of which the estimate of memory says more
    finally:
        if bar:
            logging.enable_progress_bar()
    _COMPLETE.add((source, versions))


def _attention(model: ModelConfig, family: Family) -> str:
    asked = model.attn_implementation or family.attention[0]
    if asked not in family.attention:
        raise UserError(
            f"model.attn_implementation={asked} can't compute {family.name}'s attention; leave it out for "
            f"{family.attention[0]}, or choose one of {', '.join(family.attention)}."
        )
    return "sdpa" if asked == BY_DOCUMENT else asked


def _built(
    model: ModelConfig,
    source: Source,
    config: Any,
    kind: str,
    device: str,
    attention: str,
    new: Collection[str] = (),
    **options: Any,
) -> Any:
    """The language part with every weight of the files, on a device."""
    family = FAMILIES[config.model_type]
    cls: Any = getattr(transformers, kind)
    if loads_to_host() and device != "cpu":
        cls = loader(cls)
    verbosity = logging.get_verbosity()
    if new:
        logging.set_verbosity_error()  # the warning that they are new says nothing that isn't meant
    try:
        loaded, info = cls.from_pretrained(
            source.base,
            config=config.get_text_config(),
            key_mapping=family.key_mapping,
            dtype=getattr(torch, str(model.dtype)),
            attn_implementation=attention,
            revision=source.revision,
            device_map={"": device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=only_local(source.base),
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except _UNREADABLE as error:
        raise not_loadable(source, error) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = [n for n in info["missing_keys"] if n not in new]
    known = (*new, "lm_head.weight") if new else ()
    extra = [n for n in info["unexpected_keys"] if not family.is_tower(n) and n not in known]
    _check_tensors(source, missing, extra, [key for key, *_ in info.get("mismatched_keys", ())])
    return placed(loaded)


def _check_finite(source: Source, config: Any, loaded: nn.Module) -> None:
    if found := not_finite(_numbers(source, config, loaded)):
        raise UserError(
            f"model.model_name_or_path={source.base}: {say_not_finite(found)}, and all that this model computes would "
            "be; fetch the checkpoint again, or, where training made it, take an earlier one."
        )


def _numbers(source: Source, config: Any, loaded: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the model; of a layer in 4 bit the one in the files.

    bitsandbytes on a GPU rounds NaN to some number, and no trace of it is left.
    """
    yield from loaded.named_parameters()
    yield from loaded.named_buffers()
    layers = {f"{name}.weight": module for name, module in loaded.named_modules() if four_bit.is_four_bit(module)}
    if not layers:
        return
    from gemma_tune.models.four_bit_weights import weight_of  # imports PEFT, which models without such layers spare

    checkpoint = CheckpointFiles.of(source, FAMILIES[config.model_type])
    stored = {own: name for name, own in checkpoint.language.items()}
    for own, layer in layers.items():  # files of another form than safetensors are read by Transformers alone
        yield own, checkpoint.read(stored[own]) if own in stored else weight_of(layer)


def _check_tensors(source: Source, missing: list[str], extra: list[str], reshaped: list[str]) -> None:
    """Raises UserError where the files lack tensors of the language part, or hold some that it has no place for."""
    for names, what, help_line in (
        (missing, "are missing in the files", "they would be random. Fetch the checkpoint again."),
        (extra, "in the files have no place in the model", "they would be lost. Compare config.json with the files."),
        (reshaped, "have another shape than config.json says", "they would be random. Fetch the checkpoint again."),
    ):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise UserError(
                f"model.model_name_or_path={source.base}: {len(names)} weights {what} (for example {some}); {help_line}"
            )
