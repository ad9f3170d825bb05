"""Checks of the keys that name what an adapter changes: layers, blocks, rows and ranks. The model isn't known yet."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gemma_tune.config import AdapterConfig
from gemma_tune.config.adapter import ALL_LINEAR


def layer_problems(a: AdapterConfig) -> Iterator[str]:
    """Expressions that are none, numbers out of their limits, and names that stand twice."""
    modules, blocks = a.target_modules, a.layers_to_transform
    for key in (
        "target_modules",
        "layers_to_transform",
        "trainable_token_indices",
        "modules_to_save",
        "target_parameters",
    ):
        values = getattr(a, key) if isinstance(getattr(a, key), list) else []
        if twice := dict.fromkeys(str(v) for v in values if values.count(v) > 1):
            yield f"adapter.{key} names {', '.join(twice)} twice."
    if isinstance(modules, str) and modules != ALL_LINEAR and (error := _not_an_expression(modules)):
        yield (
            f"adapter.target_modules={modules}: no regular expression ({error}); write one, as "
            r"'.*\.(q|v)_proj', or a list of names."
        )
    if blocks == []:
        yield "adapter.layers_to_transform=[] names no block; leave it out to adapt all of them."
    if blocks and isinstance(modules, str) and modules != ALL_LINEAR:
        numbers = "|".join(map(str, blocks))
        yield (
            "adapter.layers_to_transform can't be combined with a regular expression as adapter.target_modules: write "
            rf"the blocks into it, as '.*\.layers\.({numbers})\..*', or give target_modules as a list of names."
        )
    if a.target_parameters:
        init = a.init_lora_weights
        if blocks is not None:
            yield (
                "adapter.layers_to_transform with adapter.target_parameters: PEFT adapts the experts of every block; "
                "name those of the blocks as [layers.0.experts.gate_up_proj, …] and leave the numbers out."
            )
        for key, value, fits in (
            ("lora_dropout", a.lora_dropout, a.lora_dropout == 0),
            ("use_dora", a.use_dora, not a.use_dora),
            ("init_lora_weights", init, not str(init).startswith(("pissa", "olora", "loftq"))),
        ):
            if not fits:
                yield f"adapter.{key}={value} with adapter.target_parameters: experts have none; leave it out."
    for key in ("rank_pattern", "alpha_pattern"):
        for name in getattr(a, key):
            if error := _not_an_expression(name):
                yield f"adapter.{key}: {name} is no regular expression ({error}); write the name of a layer, as q_proj."


def _not_an_expression(text: str) -> re.error | None:
    try:
        re.compile(text)
    except re.error as error:
        return error
    return None
