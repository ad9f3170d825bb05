"""Which adapters `export.formats=adapter_vllm` is for; asked before training and of a stored adapter. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_tune.config import Config
from gemma_tune.config.model import TRAIN_NOTHING

_INSTEAD = "use merged, which holds the whole model"


def not_in_adapter_vllm(
    dora: bool, modules_to_save: bool, token_rows: bool, experts: bool = True, towers: bool = False
) -> str | None:
    """Why an adapter is not written for vLLM, with what to do; None where it is.

    Args:
        dora: Whether it rescales the rows of the weights.
        modules_to_save: Whether it holds whole layers.
        token_rows: Whether it trains rows of the embedding: those of added tokens, too.
        experts: Whether it adapts fused experts.
        towers: Whether towers for images or sound are trained with it.
    """
    why = {
        "DoRA": dora,
        "whole layers (modules_to_save)": modules_to_save,
        "towers that were trained with it (model.train_towers)": towers,
        "rows of the embedding (added tokens, trainable_token_indices)": token_rows,
    }
    if found := [reason for reason, so in why.items() if so]:
        return f"vLLM serves no adapter with {' and '.join(found)}; {_INSTEAD}."
    if not experts:
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
    rows = bool(a.trainable_token_indices or cfg.model.added_tokens)
    if why := not_in_adapter_vllm(
        a.use_dora, bool(a.modules_to_save), rows, towers=cfg.model.train_towers != TRAIN_NOTHING
    ):
        yield f"export.formats=adapter_vllm: {why}"
