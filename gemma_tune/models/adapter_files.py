"""Adapter files: saved so that they fit the published base, and loaded again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gemma_tune.config import AdapterConfig
from gemma_tune.errors import UserError
from gemma_tune.models.lora import FUSED_LAYERS

# Values that a stored adapter sets, and that the configuration must not contradict.
_STORED = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora")

# The language part of a checkpoint with towers: its layers' names there, and where we load it alone.
_THERE, _ALONE = "base_model.model.model.language_model.layers.", "base_model.model.model.layers."


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# Initialisations that change the base, too.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga")


def _stored_config(folder: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json of an adapter that fits the published base.

    Raises:
        UserError: It can't be read, isn't LoRA, or fits only a base that was changed with it.
    """
    try:
        stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: adapter_config.json can't be read ({error}).") from error
    if stored.get("peft_type") != "LORA":
        raise UserError(
            f"{folder}: this is a {stored.get('peft_type')} adapter, and only LoRA is supported; merge it with PEFT "
            "and name the merged folder."
        )
    if str(stored.get("init_lora_weights")).startswith(_CHANGE_THE_BASE):
        raise UserError(
            f"{folder}: a {stored['init_lora_weights']} adapter fits only the base that it was taken out of; "
            "name a finished run's folder or its adapter/, which is a plain LoRA."
        )
    return dict(stored)


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
    _stored_config(folder)
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = True
    config.init_lora_weights = True  # its weights come from the file, whatever its initialisation was
    return _with_weights(model, config, folder).eval()


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
    stored_config = _stored_config(folder)
    if stored_config.get("modules_to_save") or stored_config.get("bias", "none") != "none":
        raise UserError(
            f"{folder}: only LoRA adapters without modules_to_save and without bias can be continued; merge it with "
            "PEFT and name the merged folder."
        )
    config = LoraConfig.from_pretrained(str(folder))
    wanted = {k: getattr(adapter, k) for k in _STORED}
    stored = {k: getattr(config, k) for k in _STORED}
    if isinstance(adapter.target_modules, list) and not isinstance(config.target_modules, str):
        wanted["target_modules"] = sorted(adapter.target_modules)
        stored["target_modules"] = sorted(config.target_modules)
    problems = [
        f"adapter.{k}={_word(v)}, but {folder} has {_word(stored[k])}: set adapter.{k}={_word(stored[k])}."
        for k, v in wanted.items()
        if v != stored[k]
    ]
    if problems:
        raise UserError(*problems)
    config.inference_mode = False
    return _with_weights(model, config, folder)


def _with_weights(model: Any, config: LoraConfig, folder: Path) -> Any:
    """A PeftModel with the stored weights; each of them must match a weight of the model."""
    config._register_custom_module(FUSED_LAYERS)
    peft_model = get_peft_model(model, config)
    try:
        weights = {k.replace(_THERE, _ALONE): v for k, v in load_file(folder / "adapter_model.safetensors").items()}
        outcome = set_peft_model_state_dict(peft_model, weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder}: adapter_model.safetensors can't be used ({str(error).splitlines()[0]}).") from error
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

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Writes the adapter, the tokenizer with its template, and the generation config that stops."""
        kwargs = {"path_initial_model_for_weight_conversion": self._start.name} if self._start else {}
        # Not TRL's copy of it. No adapter reaches the embedding; left to itself, PEFT opens the base's config.json to
        # find out
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False, **kwargs)
        if self._with_towers:
            _use_published_names(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the run's report.md says it all
        tokenizer.save_pretrained(folder)
        if generation := getattr(model.get_base_model(), "generation_config", None):  # a classifier has none
            generation.save_pretrained(folder)
        if self._start:
            self._start.cleanup()


def _use_published_names(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {k.replace(_ALONE, _THERE): v for k, v in weights.items()}
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    leaves = "|".join(sorted({k.split(".lora_")[0].rsplit(".", 1)[-1] for k in weights}))
    # The image tower has layers of the same names; the language part matches alone and inside the whole model.
    config["target_modules"] = rf"model\.(language_model\.)?layers\.\d+\.(\w+\.)*({leaves})"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
