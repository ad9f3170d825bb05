"""The language part inside whatever is around it, and its head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Logits = Callable[[torch.Tensor], torch.Tensor]  # [N, H] → float32 [N, V]


def language_part(model: Any) -> Any:
    """The model itself, or that inside a PeftModel, with its adapters on."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(base: Any) -> Logits:
    """Hidden states to logits in float32, with the softcap of those families that have one."""
    cap = base.config.get_text_config().final_logit_softcapping

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = base.lm_head(hidden).float()
        return found if cap is None else torch.tanh(found / cap) * cap

    return logits
