"""Adapter files: saved so that they fit the published base, and loaded again."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from gemma_tune.config import AdapterConfig
from gemma_tune.errors import UserError
from gemma_tune.models.adapters.stored_adapter import StoredAdapter, read_adapter
from gemma_tune.models.kernels.lora import FUSED_LAYERS
from gemma_tune.models.towers.trained_towers import save_with_adapter
from gemma_tune.models.unwrap import plain_name

# Values that a stored adapter sets, and that the configuration must not contradict.
_STORED = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora")

# The language part of a checkpoint with towers: its layers' names there, and where we load it alone.
_THERE, _ALONE = "base_model.model.model.language_model.", "base_model.model.model."

_OF_ADAPTERS = re.compile(r"\.lora_|\.token_adapter\.")


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def load_frozen_adapter(model: Any, folder: Path) -> Any:
    """The model with a stored adapter of any rank, for inference.

    Args:
        model: The loaded base, 16-bit or 4-bit.
        folder: PEFT's folder.

    Returns:
        A PeftModel in evaluation mode, without gradients.

    Raises:
        UserError: An adapter that isn't LoRA, or one of another base.
    """
    stored = read_adapter(folder, model)
    stored.config.inference_mode = True
    return _with_weights(model, stored, folder).eval()


def load_adapter(model: Any, adapter: AdapterConfig, folder: Path) -> Any:
    """A PeftModel that continues training a stored adapter.

    Args:
        model: The loaded base.
        adapter: The configuration; must not contradict the stored one.
        folder: PEFT's folder.

    Raises:
        UserError: Another shape than the configuration's, or layers that this base doesn't have.
    """
    if adapter.peft_type == "none":
        raise UserError(
            f"{folder} is an adapter, and adapter=none trains every weight: continue it with adapter=lora, or name "
            "the merged model's folder (export/merged)."
        )
    return _with_weights(model, continued(model, adapter, folder), folder)


def continued(plain: Any, adapter: AdapterConfig, folder: Path) -> StoredAdapter:
    """A stored adapter that training goes on with.

    Args:
        plain: The base, loaded or on the meta device.
        adapter: The configuration.
        folder: PEFT's folder.

    Raises:
        UserError: As `load_adapter`.
    """
    if adapter.peft_type == "none":
        raise UserError(
            f"{folder} is an adapter, and adapter=none trains every weight: continue it with adapter=lora, or name "
            "the merged model's folder (export/merged)."
        )
    stored = read_adapter(folder, plain)
    check_reach(folder, stored)
    wanted = {k: getattr(adapter, k) for k in _STORED}
    there = {k: getattr(stored.config, k) for k in _STORED}
    if isinstance(adapter.target_modules, list) and isinstance(stored.targets, Collection):
        wanted["target_modules"], there["target_modules"] = sorted(adapter.target_modules), sorted(stored.targets)
        if isinstance(stored.targets, str):
            del wanted["target_modules"], there["target_modules"]
    if adapter.target_parameters:
        wanted["target_parameters"] = sorted(adapter.target_parameters)
        there["target_parameters"] = sorted(stored.config.target_parameters or ())
    problems = [
        f"adapter.{k}={_word(v)}, but {folder} has {_word(there[k])}: set adapter.{k}={_word(there[k])}."
        for k, v in wanted.items()
        if v != there[k]
    ]
    problems += [
        f"adapter.{k}: {folder} has its layers and ranks already; leave it out."
        for k in ("layers_to_transform", "rank_pattern", "alpha_pattern", "modules_to_save")
        if getattr(adapter, k)
    ]
    rows = set(stored.config.trainable_token_indices or ())
    if lost := sorted({*adapter.trainable_token_indices} - rows):
        problems.append(
            f"adapter.trainable_token_indices (and model.added_tokens): {folder} trains no row {lost[0]} of the "
            "embedding, and can't get further ones: merge it (recipe=export quant=none "
            "export=merged), and train a new adapter on the result."
        )
    if problems:
        raise UserError(*problems)
    stored.config.inference_mode = False
    return stored


def check_reach(folder: Path, stored: StoredAdapter) -> None:
    """Raises UserError for an adapter on the embedding or the head: merged, the two would no longer agree."""
    if stored.reaches:
        raise UserError(
            f"{folder}: it adapts {' and '.join(stored.reaches)}: embedding and head are one matrix, and this adapter "
            "changes one of the two, so no merged file holds the same model; recipe=chat and recipe=evaluate use it "
            "as it is."
        )


def _with_weights(model: Any, stored: StoredAdapter, folder: Path) -> Any:
    """A PeftModel with the stored weights; each of them must match a weight of the model."""
    stored.config._register_custom_module(FUSED_LAYERS)
    try:
        peft_model = get_peft_model(model, stored.config)
        outcome = set_peft_model_state_dict(peft_model, stored.weights)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: PEFT can't put it on this base ({str(error).splitlines()[0]}).") from error
    lost = [*outcome.unexpected_keys, *(k for k in outcome.missing_keys if "lora_" in k)]
    if lost:
        raise UserError(f"{folder}: {len(lost)} of its weights don't fit this base (for example {lost[0]}).")
    return peft_model


class AdapterSaver:
    """Saves an adapter so that it fits the published base.

    PiSSA and OLoRA subtract the adapter's initial product from the base's weights. An adapter saved as it is would only
    fit that changed base, so it is saved as a plain LoRA of twice the rank (PEFT's conversion).

    Many checkpoints are published with towers for images or audio around the language part, which is all that we load.
    Their adapters are saved under the names of the published model; weights under other names would be ignored there
    with no more than a warning.

    Args:
        model: The model with its adapter, before training.
        with_towers: Whether the base is published with towers for images or audio.
    """

    def __init__(self, model: Any, with_towers: bool) -> None:
        self._with_towers = with_towers
        self._start: tempfile.TemporaryDirectory[str] | None = None
        config = model.peft_config["default"] if isinstance(model, PeftModel) else None
        # A stored adapter that is continued is a plain LoRA already, whatever the configuration says of new ones.
        if config is not None and str(config.init_lora_weights).startswith(("pissa", "olora")):
            self._start = tempfile.TemporaryDirectory(prefix="adapter-start-")
            init, config.init_lora_weights = config.init_lora_weights, True
            model.save_pretrained(self._start.name, save_embedding_layers=False)
            config.init_lora_weights = init

    def save(self, model: Any, tokenizer: Any, folder: Path, weights: Any = None) -> None:
        """Writes the adapter, the tokenizer with its template, and the generation config that stops.

        Args:
            model: The model with its adapter.
            tokenizer: Its tokenizer.
            folder: Where to.
            weights: Those that are trained, by name; None: the model's own, which must be whole.
        """
        kwargs = {"path_initial_model_for_weight_conversion": self._start.name} if self._start else {}
        # Not TRL's copy of it. No adapter reaches the embedding; left to itself, PEFT opens the base's config.json to
        # find out
        own = {"selected_adapters": ["default"], "save_embedding_layers": False, "state_dict": weights}
        model.save_pretrained(folder, **own, **kwargs)
        if self._with_towers:
            _use_published_names(folder)
        save_with_adapter(model, folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the report writes one
        tokenizer.save_pretrained(folder)
        if generation := getattr(model.get_base_model(), "generation_config", None):  # a classifier has none
            generation.save_pretrained(folder)
        if self._start:
            self._start.cleanup()


def _use_published_names(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {k.replace(_ALONE, _THERE, 1): v for k, v in weights.items()}
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    # Modules of fused experts are no linear layers: PEFT refuses them here, and has their tensors by target_parameters
    fused = tuple(f".{name.rpartition('.')[0]}" for name in config.get("target_parameters") or ())
    layers = {k.split(".lora_")[0] for k in weights if ".lora_" in k}
    layers = {name for name in layers if not plain_name(name).endswith(fused)}
    # The image tower has layers of the same names; the language part matches alone and inside the whole model.
    config["target_modules"] = rf"model\.(language_model\.)?{_exactly(layers)}" if layers else []
    whole = {k.rpartition(".")[0].replace(_ALONE, "language_model.") for k in weights if not _OF_ADAPTERS.search(k)}
    config["modules_to_save"] = sorted(name.removeprefix("base_model.model.") for name in whole) or None
    for key in ("rank_pattern", "alpha_pattern"):
        config[key] = {name.removeprefix("model."): value for name, value in (config.get(key) or {}).items()}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _exactly(names: set[str]) -> str:
    """A regular expression for layers of the language part, from their names: for those and no others."""
    inside = sorted(name.rpartition("layers.")[2] for name in names if "layers." in name)
    numbers = sorted({int(name.split(".")[0]) for name in inside})
    leaves = sorted({name.split(".", 1)[1] for name in inside})
    if len(inside) == len(numbers) * len(leaves):
        return rf"layers\.({'|'.join(map(str, numbers))})\.({'|'.join(map(re.escape, leaves))})"
    return rf"layers\.({'|'.join(map(re.escape, inside))})"
