"""The names that a new adapter is asked for by: each must be a layer, a block or a norm that the model has."""

from __future__ import annotations

import re
from typing import Any

from peft.tuners.lora import ParamWrapper
from torch import nn

from gemma_tune.config import AdapterConfig
from gemma_tune.errors import UserError
from gemma_tune.models.adapters.stored_adapter import TIED
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.unwrap import plain_name


def check_names(model: Any, adapter: AdapterConfig) -> None:
    """Refuses names of layers and numbers of blocks that a model doesn't have, before the adapter is placed.

    Args:
        model: The language part without an adapter, loaded or on the meta device.
        adapter: What is asked for.

    Raises:
        UserError: A name without a layer, a block that isn't there, or `modules_to_save` that are no norms.
    """
    _check_saved(model, adapter)
    blocks = model.config.num_hidden_layers
    if lost := [str(n) for n in adapter.layers_to_transform or () if n >= blocks]:
        raise UserError(
            f"adapter.layers_to_transform: there is no block {', '.join(lost)}; this model has the blocks 0 "
            f"to {blocks - 1}."
        )
    _check_parameters(model, adapter)
    # PEFT ignores a name that matches nothing, as long as another one matches
    for name in adapter.target_modules if isinstance(adapter.target_modules, list) else ():
        found = {type(m).__name__: isinstance(m, nn.Linear) for n, m in model.named_modules() if _ends(n, name)}
        others = ", ".join(kind for kind, linear in found.items() if not linear)
        if not found or others:
            why = f"{name} is of {others}, no linear layer" if others else f"no layer is named {name}"
            raise UserError(f"adapter.target_modules: {why}. {_linear_layers(model)}")


def _check_parameters(model: Any, adapter: AdapterConfig) -> None:
    """Raises UserError for `target_parameters` that are no fused experts: PEFT would adapt norms and matrices, too."""
    family = FAMILIES[model.config.model_type]
    fused = sorted({".".join(n.split(".")[-2:]) for n, _ in model.named_parameters() if family.is_expert(n)})
    for name in adapter.target_parameters:
        if not any(_ends(name, known) for known in fused):
            there = f"they are {' and '.join(fused)}" if fused else "this model has none"
            raise UserError(f"adapter.target_parameters: {name} is no tensor of fused experts; {there}.")


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def not_placed(model: Any, error: ValueError) -> UserError:
    """PEFT's error for layers that take no adapter, under the key that names them."""
    said = str(error).splitlines()[0].removesuffix("(")  # where a module follows, over many lines
    return UserError(f"adapter.target_modules: {said.removesuffix('.')}. {_linear_layers(model)}")


def check_matches(model: Any, adapter: AdapterConfig) -> None:
    """Raises UserError for a pattern or a block that no adapted layer has: PEFT ignores it."""
    modules = model.get_base_model().named_modules()
    adapted = [
        f"{plain_name(n)}.{m.parameter_name}" if isinstance(m, ParamWrapper) else n
        for n, m in modules
        if hasattr(m, "lora_A")
    ]
    for key in ("rank_pattern", "alpha_pattern"):
        for name in getattr(adapter, key):
            if not any(re.match(rf"(.*\.)?({name})$", layer) for layer in adapted):
                raise UserError(
                    f"adapter.{key}.{name}: no adapted layer is named so; they are {adapted[0]} to {adapted[-1]}."
                )
    blocks = {int(n) for layer in adapted for n in re.findall(r"\.layers\.(\d+)\.", f".{layer}")}
    if lost := sorted({*(adapter.layers_to_transform or ())} - blocks):
        raise UserError(f"adapter.layers_to_transform: no adapted layer is in block {', '.join(map(str, lost))}.")


def _linear_layers(model: Any) -> str:
    family = FAMILIES[model.config.model_type]
    names = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return f"Linear layers: {', '.join(sorted(n for n in names if family.reaches(n)))}."


def _check_saved(model: Any, adapter: AdapterConfig) -> None:
    """Raises UserError for `modules_to_save` that are no norms: only they are trained whole and merged exactly."""
    norms = {n for n, m in model.named_modules() if "norm" in type(m).__name__.lower() and [*m.parameters()]}
    for name in adapter.modules_to_save:
        found = [n for n, _ in model.named_modules() if n.endswith(name)]  # as PEFT finds them
        others = [n for n in found if n not in norms]
        if any(n in TIED for n in others):
            raise UserError(
                f"adapter.modules_to_save: {name} would train a whole copy of the embedding, which is the head, too; "
                "name the rows that are to change in adapter.trainable_token_indices, or train every weight "
                "(recipe=full_sft)."
            )
        if others or not found:
            why = f"{others[0]} is no norm; linear layers take an adapter" if others else f"no layer ends in {name}"
            names = ", ".join(sorted({n.rsplit(".")[-1] for n in norms}))
            raise UserError(f"adapter.modules_to_save: {why}. Norms are named {names}.")
