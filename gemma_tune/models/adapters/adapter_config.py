"""PEFT's adapter_config.json of a stored adapter: LoRA that fits the published base, or refused with the way out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftType

from gemma_tune.errors import UserError, first_line, listed, quoted, shortened
from gemma_tune.models.folders import ADAPTER_CONFIG, read_adapter_config
from gemma_tune.models.towers.tower_names import trains_towers
from gemma_tune.validation.adapter_parts import AdapterParts

MERGE = (
    "merge it with PEFT (AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…)) and name "
    "the merged folder"
)
_NO_MERGE = "PEFT can't merge it, either: use it with PEFT itself, or train a LoRA on the same rows (recipe=lora_sft)"
# Kinds of adapters that PEFT can't merge into the weights of a Gemma, and why; it merges all others.
_PROMPTS = "it learns vectors that stand before the prompt, or beside its keys and values, and changes no weight"
_BY_INPUT = "what it adds to the weights depends on the input"
_UNMERGED = {
    **dict.fromkeys(
        (
            "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT",
            "CARTRIDGE",
        ),
        _PROMPTS,
    ),
    **dict.fromkeys(("XLORA", "POLY", "SHADOW", "LILY"), _BY_INPUT),
    "BEFT": "it trains biases, and Gemma's layers have none",
}  # fmt: skip
# Initialisations that change the base, too.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga")
# Fields of LoRA's configuration whose adapters are no W + s·B·A of Gemma's own layers; why, and the way out.
_REFUSED = {
    "lora_bias": ("its layers have biases of their own, and Gemma's have none", _NO_MERGE),
    "layer_replication": ("it repeats layers of the model", _NO_MERGE),
    "alora_invocation_tokens": ("it works only behind certain tokens", _NO_MERGE),
    "use_qalora": ("it pools the inputs of its layers", _NO_MERGE),
    "use_bdlora": ("its matrices are block-diagonal", MERGE),
    "kasa_config": ("its layers have singular values of their own", MERGE),
    "arrow_config": ("it chooses among several adapters", _NO_MERGE),
    "monteclora_config": ("it samples its weights", MERGE),
    "megatron_config": ("it is for Megatron's layers", _NO_MERGE),
    "fan_in_fan_out": ("it is for transposed layers", MERGE),
}


def _is_number(value: object, most: float = 2**20) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _are(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and _is_number(value, 2**16) and value > 0


def _are_rows(value: object) -> bool:
    """Row numbers of the embedding, perhaps by the name of the matrix."""
    lists = list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(rows, list) and all(_is_number(i, 2**24) for i in rows) for rows in lists)


# What the values are that are computed with
_FITS: dict[str, Callable[[Any], bool]] = {
    "r": _is_rank,
    "lora_alpha": _is_number,
    "rank_pattern": lambda value: isinstance(value, dict) and all(map(_is_rank, value.values())),
    "alpha_pattern": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "target_modules": lambda value: isinstance(value, str) or _are(value, str),
    "modules_to_save": lambda value: _are(value, str),
    "trainable_token_indices": _are_rows,
    "layers_to_transform": lambda value: _is_number(value) or _are(value, int),
}


def stored_config(folder: Path) -> LoraConfig:
    """PEFT's adapter_config.json of an adapter that fits the published base.

    Raises:
        UserError: It can't be read, isn't LoRA, fits only a base that was changed with it, or is of a kind that can't
            be merged exactly.
    """
    stored = read_adapter_config(folder)
    _check_kind(folder, stored.get("peft_type"))
    if str(stored.get("init_lora_weights")).startswith(_CHANGE_THE_BASE):
        raise UserError(
            f"{folder}: a {stored['init_lora_weights']} adapter fits only the base that it was taken out of; "
            "name a finished run's folder or its adapter/, which is a plain LoRA."
        )
    for field, (why, way_out) in _REFUSED.items():
        if stored.get(field):
            raise UserError(f"{folder}: an adapter with {field} can't be used: {why}; {way_out}.")
    known = {f.name for f in dataclasses.fields(LoraConfig)} | {"auto_mapping", "peft_version", "corda_config"}
    if unknown := sorted(name for name, value in stored.items() if value and name not in known):
        raise UserError(f"{folder}: it has {listed(unknown)}, which this version of PEFT doesn't know; {MERGE}.")
    for name, fits in _FITS.items():
        if stored.get(name) is not None and not fits(stored[name]):
            raise UserError(
                f"{folder}: {ADAPTER_CONFIG}: {name} can't be {quoted(stored[name])}; save the adapter again."
            )
    try:
        config = LoraConfig(
            **{k: v for k, v in stored.items() if k in known and k not in ("auto_mapping", "peft_type")}
        )
    except Exception as error:  # values of any type fail PEFT in any way
        raise UserError(f"{folder}: {ADAPTER_CONFIG}: {first_line(error)}") from error
    # Its weights come from the file, whatever its initialisation was; Gemma's language part has no biases to train
    config.init_lora_weights, config.bias = True, "none"
    return config


def _check_kind(folder: Path, kind: object) -> None:
    """Raises UserError for an adapter that isn't LoRA."""
    if kind == "LORA":
        return
    if kind not in [known.value for known in PeftType]:
        raise UserError(
            f"{folder}: the peft_type in its {ADAPTER_CONFIG} is {shortened(str(kind or 'not there'))}, which this "
            "version of PEFT doesn't know, and only LORA is supported; save the adapter again with PEFT."
        )
    why, way_out = (f"{_UNMERGED[kind]}; ", _NO_MERGE) if kind in _UNMERGED else ("", MERGE)
    raise UserError(f"{folder}: this is a {kind} adapter, and only LoRA is supported; {why}{way_out}.")


def stored_rows(folder: Path) -> list[int]:
    """The rows of the embedding that a stored adapter has trained; the base may have none of the last ones yet.

    Raises:
        UserError: As `stored_config`.
    """
    asked = stored_config(folder).trainable_token_indices or []
    return [int(i) for rows in (asked.values() if isinstance(asked, dict) else [asked]) for i in rows]


def parts_of(folder: Path, config: LoraConfig) -> AdapterParts:
    """What a stored adapter has beside the two matrices of linear layers.

    Args:
        folder: Where it is.
        config: PEFT's configuration.
    """
    return AdapterParts(
        dora=bool(config.use_dora),
        modules_to_save=bool(config.modules_to_save),
        token_rows=bool(config.trainable_token_indices),
        experts=bool(config.target_parameters),
        towers=trains_towers(folder),
    )
