"""TRL's trainers with our head: only trained positions, in tiles, with the gradient in the forward pass.

TRL gives a model a forward pass of its own, which its trainers call with `fused_lm_head=True`. Where Triton is missing,
as on a CPU, it computes the logits of all positions, three times, with float32 products. On a GPU it skips the others
itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from torch.nn import functional
from trl.trainer.utils import FusedCausalLMOutput

from gemma_tune.models.label_positions import at_labels
from gemma_tune.models.sharded import whole_weight
from gemma_tune.models.tiled_head import HeadOptions, token_log_probs

_PLAIN = (nn.Linear, TrainableTokensWrapper)  # heads whose product is that with their `weight`


def use_tiled_head(
    model: Any,
    outputs: Sequence[str] = (),
    temperature: float = 1.0,
    wide: bool = False,
    entropy_gradient: bool = False,
) -> None:
    """Gives a language part that TRL's trainer has prepared (`add_fused_lm_head`) our head, once.

    A call with `output_router_logits`, and a head that is no plain layer, stay TRL's.

    Args:
        model: The language part, without a PeftModel around it.
        outputs: What TRL's trainer reads beside the log-probabilities; see `HeadOptions`.
        temperature: Logits are divided by it.
        wide: Whether the head computes in float32 (`cast_lm_head_to_fp32`).
        entropy_gradient: Whether the entropy is part of the loss.
    """
    theirs = model.forward
    if getattr(theirs, "is_tiled_head", False) or type(model.get_output_embeddings()) not in _PLAIN:
        return
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    options = HeadOptions(cap, temperature, tuple(outputs), entropy_gradient)

    @functools.wraps(theirs)
    def forward(*args: Any, **given: Any) -> Any:
        if not given.get("fused_lm_head") or given.get("output_router_logits"):
            return theirs(*args, **given)
        del given["fused_lm_head"]
        return _scored(model, args, given, options, wide)

    forward.is_tiled_head = True  # type: ignore[attr-defined]
    model.forward = forward


def _scored(model: Any, args: tuple[Any, ...], given: dict[str, Any], options: HeadOptions, wide: bool) -> Any:
    labels, shifted, items = (given.pop(name, None) for name in ("labels", "shift_labels", "num_items_in_batch"))
    own = shifted is None
    shifted = labels[:, 1:] if own else shifted
    mask = shifted != -100
    with at_labels(model, functional.pad(mask, (0, 1)) if own else mask) as places:
        hidden = model.base_model(*args, **given | {"use_cache": False}).last_hidden_state
    states = hidden[:, : mask.shape[1]][mask] if places is None else hidden[places.read]
    weight = whole_weight(model.get_output_embeddings().weight)
    kind = states.device.type
    enabled = torch.is_autocast_enabled(kind) and not wide
    with torch.autocast(kind, enabled=enabled, dtype=torch.get_autocast_dtype(kind)):
        found = token_log_probs(states.float() if wide else states, weight, shifted[mask], options)
    # `masked_scatter` leaves a way for gradients where no position is trained, too
    rows = {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in found.items()}
    count = mask.sum().clamp(min=1) if items is None else items
    return FusedCausalLMOutput(loss=-rows["log_probs"].sum() / count, label_mask=mask, **rows)
