"""`adapter=…`: which adapter is trained, or every weight without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_tune.config.option import TOKENS, option

_RANK, _ALPHA = 2**16, 2**20

ALL_LINEAR = "all-linear"


@dataclass
class AdapterConfig:
    """Names are those of PEFT's `LoraConfig` (and `create_loraplus_optimizer`)."""

    peft_type: str = option("none", "none trains every weight of the model.", choices=("none", "lora"))
    r: int = option(16, "Rank of the two adapter matrices.", at_least=1, at_most=_RANK)
    lora_alpha: int = option(
        32, "The update is scaled by lora_alpha / r (rsLoRA: by lora_alpha / sqrt(r)).", at_least=1, at_most=_ALPHA
    )
    lora_dropout: float = option(
        0.0, "Dropout probability on the input of the adapter while training.", at_least=0, at_most=0.99
    )
    target_modules: Any = option(
        ALL_LINEAR, "`all-linear` (the seven projections of every block), a regular expression, or a list of names."
    )
    target_parameters: list[str] = option(
        [],
        "Fused tensors to adapt beside these layers, by the end of their names: the experts of Gemma 4 26B-A4B are "
        "`[experts.gate_up_proj, experts.down_proj]`. Each expert has an adapter of its own.",
    )
    layers_to_transform: list[int] | None = option(
        None,
        "Numbers of the blocks to adapt, from 0; null: all. Not with a regular expression as target_modules.",
        at_least=0,
        at_most=9999,
    )
    rank_pattern: dict[str, int] = option(
        {},
        "Other ranks for some layers, by name or regular expression: `{q_proj: 4}`.",
        at_least=1,
        at_most=_RANK,
    )
    alpha_pattern: dict[str, int] = option(
        {},
        "Other values of lora_alpha for some layers, by name or regular expression.",
        at_least=1,
        at_most=_ALPHA,
    )
    trainable_token_indices: list[int] = option(
        [],
        "Ids of tokens whose rows of the embedding, which is the head, too, are trained beside the adapter; those of "
        "`model.added_tokens` always are.",
        at_least=0,
        at_most=TOKENS,
    )
    modules_to_save: list[str] = option(
        [], "Layers that are trained whole and saved with the adapter, by the end of their names: norms, as `[norm]`."
    )
    use_dora: bool = option(False, "DoRA: learn the magnitude of the weight apart from its direction.")
    use_rslora: bool = option(False, "rsLoRA: scale by lora_alpha / sqrt(r).")
    init_lora_weights: Any = option(
        True, "true (B = 0), gaussian, pissa, pissa_niter_N, olora, or loftq (only with `model.load_in_4bit=true`)."
    )
    loraplus_lr_ratio: float | None = option(
        None,
        "LoRA+: learning rate of B as a multiple of `train.learning_rate`; null: the same rate for A and B.",
        at_least=1,
        at_most=1e6,
    )
