"""Which adapters `export.formats=adapter_vllm` is for; asked before training and of a stored adapter. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gemma_tune.config import Config
from gemma_tune.validation.adapter_parts import AdapterParts, planned_parts

_INSTEAD = "use merged, which holds the whole model"


_WHY = {
    "dora": "DoRA",
    "modules_to_save": "whole layers (modules_to_save)",
    "towers": "towers that were trained with it (model.train_towers)",
    "token_rows": "rows of the embedding (added tokens, trainable_token_indices)",
}


def not_in_adapter_vllm(parts: AdapterParts) -> str | None:
    """Why an adapter with these parts is not written for vLLM, with what to do; None where it is."""
    if found := parts.among(_WHY):
        return f"vLLM serves no adapter with {' and '.join(found)}; {_INSTEAD}."
    if not parts.experts:
        return (
            "export.formats=adapter_vllm is for adapters on fused experts (adapter.target_parameters), and it has none "
            "there: vLLM serves it as it is, so leave adapter_vllm out."
        )
    return None


def adapter_vllm_problems(cfg: Config) -> Iterator[str]:
    """What a training with `export.formats=adapter_vllm` can't write at its end."""
    a = cfg.adapter
    if "adapter_vllm" not in cfg.export.formats or not cfg.traits.trains:
        return
    if a.peft_type == "none":
        yield f"export.formats=adapter_vllm with adapter=none: there is no adapter; {_INSTEAD}."
        return
    # Whether the model has experts is known later
    if why := not_in_adapter_vllm(replace(planned_parts(cfg), experts=True)):
        yield f"export.formats=adapter_vllm: {why}"
